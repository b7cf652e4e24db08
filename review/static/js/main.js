// The page begins here: texts, theme, session, then the page that the address names.

import { whenSignedOut } from "./api.js";
import { showHeader } from "./header.js";
import { loadTexts, t } from "./i18n.js";
import { startKeys, useKeys } from "./keys.js";
import * as live from "./live.js";
import { clearNotices, explain, notice, noticeError } from "./notices.js";
import { operationsPage } from "./operations.js";
import * as session from "./session.js";
import { slidePage } from "./slide.js";
import { applyTheme } from "./theme.js";
import { listAddress, worklistPage } from "./worklist.js";

const main = document.getElementById("main");
let shown = null; // {path, page}

/** "#/slide/KEY?x=1" → {path: "/slide/KEY", values: URLSearchParams} */
function address() {
  const [path, values = ""] = (location.hash.slice(1) || "/").split("?");
  return { path, values: new URLSearchParams(values) };
}

function pageFor(path, values) {
  const slide = /^\/slide\/([0-9a-f]{20})$/.exec(path);
  if (slide) return slidePage(slide[1], values);
  if (path === "/operations") return operationsPage();
  return worklistPage(values);
}

async function show({ again = false } = {}) {
  const { path, values } = address();
  if (!again && shown?.path === path && shown.page.goTo?.(values)) return;
  // What went wrong, and what a dialog asks, is of the page where it was.
  if (!again) clearNotices();
  shown?.page.leave?.();
  for (const box of document.querySelectorAll("dialog[open]:not(.sign-in)")) box.close();
  main.replaceChildren();
  // Until the new page has keys of its own, those of the old one would act on what is not shown any more.
  useKeys([{ keys: ["Escape"], text: "keys.worklist", run: () => (location.hash = listAddress()) }]);
  const page = pageFor(path, values);
  const moved = shown !== null;
  shown = { path, page, ready: false };
  main.dataset.loading = t("loading");
  main.setAttribute("aria-busy", "true");
  main.className = page.name;
  document.title = `${t(`page.${page.name}`)} – slidestream`;
  showHeader(page.name, () => show({ again: true }));
  live.connect(page.slide ?? null);
  try {
    await page.enter(main);
    shown.ready ||= shown.page === page;
  } catch (error) {
    if (shown.page === page && error.name !== "AbortError") {
      main.replaceChildren();
      const text = notice(explain(error), { error: true });
      text.dataset.page = path;
    }
  }
  if (shown.page !== page) return;
  main.removeAttribute("aria-busy");
  if (moved && !again) main.focus({ preventScroll: true });
}

let asking = false;

/** The session has ended. What is on the page stays, for the same person; another one gets a page of their own. */
async function signInAgain() {
  if (asking) return;
  asking = true;
  const before = session.user();
  const now = await session.ask();
  asking = false;
  if (!shown?.ready || now.user !== before?.user || now.role !== before?.role) {
    show({ again: true });
    return;
  }
  live.connect(shown.page.slide ?? null);
  live.catchUp();
}

async function begin() {
  applyTheme();
  await loadTexts();
  startKeys();
  whenSignedOut(signInAgain);
  await session.start();
  addEventListener("hashchange", () => show());
  addEventListener("slidestream-reload", () => show({ again: true }));
  addEventListener("beforeunload", (event) => shown?.page.unsaved?.() && event.preventDefault());
  // A closed tab is gone from "also open by" at once, not when the connection times out.
  addEventListener("pagehide", () => live.disconnect());
  addEventListener("pageshow", (event) => event.persisted && show({ again: true }));
  await show();
}

begin().catch(noticeError);
