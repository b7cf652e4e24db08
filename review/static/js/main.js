// The page begins here: texts, theme, session, then the page that the address names.

import { whenSignedOut } from "./api.js";
import { showHeader } from "./header.js";
import { loadTexts, t } from "./i18n.js";
import { startKeys } from "./keys.js";
import * as live from "./live.js";
import { explain, notice, noticeError } from "./notices.js";
import { operationsPage } from "./operations.js";
import * as session from "./session.js";
import { slidePage } from "./slide.js";
import { applyTheme } from "./theme.js";
import { worklistPage } from "./worklist.js";

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
  shown?.page.leave?.();
  main.replaceChildren();
  const page = pageFor(path, values);
  const moved = shown !== null;
  shown = { path, page };
  main.className = page.name;
  document.title = `${t(`page.${page.name}`)} – slidestream`;
  showHeader(page.name, () => show({ again: true }));
  live.connect(page.slide ?? null);
  try {
    await page.enter(main);
  } catch (error) {
    if (shown.page === page && error.name !== "AbortError") {
      main.replaceChildren();
      const text = notice(explain(error), { error: true });
      text.dataset.page = path;
    }
  }
  if (moved && !again) main.focus({ preventScroll: true });
}

async function begin() {
  applyTheme();
  await loadTexts();
  startKeys();
  whenSignedOut(async () => {
    await session.ask();
    show({ again: true });
  });
  await session.start();
  addEventListener("hashchange", () => show());
  addEventListener("slidestream-reload", () => show({ again: true }));
  // A closed tab is gone from "also open by" at once, not when the connection times out.
  addEventListener("pagehide", () => live.disconnect());
  addEventListener("pageshow", (event) => event.persisted && show({ again: true }));
  await show();
}

begin().catch(noticeError);
