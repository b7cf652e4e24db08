// The line at the top: where one is, language, brightness, keys, who one is.

import { choice, element, replace } from "./dom.js";
import { LANGUAGES, chooseLanguage, currentLanguage, t } from "./i18n.js";
import { showKeys } from "./keys.js";
import { noticeError } from "./notices.js";
import * as session from "./session.js";
import { THEMES, applyTheme, currentTheme } from "./theme.js";
import { listAddress } from "./worklist.js";

const PAGES = { worklist: "#/", operations: "#/operations" };

async function signOut() {
  try {
    await session.leave();
    location.assign("/");
  } catch (error) {
    noticeError(error);
  }
}

export function showHeader(page, again) {
  const user = session.user();
  document.getElementById("skip").textContent = t("header.skip");
  replace(
    document.getElementById("header"),
    element("a", { class: "brand", href: "#/" }, "slidestream"),
    element(
      "nav",
      { "aria-label": t("header.pages") },
      Object.entries(PAGES).map(([name, href]) =>
        element("a", { href: name === "worklist" && page !== name ? listAddress() : href, "aria-current": page === name ? "page" : null }, t(`page.${name}`)),
      ),
    ),
    element("span", { class: "grow" }),
    choice(
      Object.entries(LANGUAGES),
      currentLanguage(),
      async (wanted) => {
        await chooseLanguage(wanted);
        again();
        document.getElementById("language").focus();
      },
      { id: "language", "aria-label": t("header.language") },
    ),
    choice(THEMES.map((theme) => [theme, t(`theme.${theme}`)]), currentTheme(), applyTheme, { "aria-label": t("header.theme") }),
    element("button", { type: "button", onclick: showKeys, "aria-label": t("keys.title"), title: t("keys.title") }, "?"),
    user && element("span", { class: "who" }, element("strong", {}, user.user), " ", element("span", { class: "quiet" }, t(`role.${user.role}`, {}, user.role))),
    user && !user.implicit && element("button", { type: "button", onclick: signOut }, t("session.sign_out")),
  );
}
