// Who is at the page: signing in (also in the middle of work, when the session has run out) and out.

import * as api from "./api.js";
import { element, field } from "./dom.js";
import { t } from "./i18n.js";
import { explain } from "./notices.js";

let current = null;
let asking = null;

export const user = () => current;
export const mayAct = () => current !== null && current.role !== "viewer";

function take(answer) {
  current = answer;
  api.useToken(answer.csrf ?? "");
  return answer;
}

/** The session, asking for name and password where there is none. */
export async function start() {
  try {
    return take(await api.session());
  } catch (error) {
    if (error.status !== 401) throw error;
    return ask();
  }
}

/** Signed in anew in another window: if as the same person, this one goes on with the new session. */
api.whenTokenIsOld(async () => {
  const now = await api.session();
  if (now.user !== current?.user || now.role !== current?.role) return false;
  take(now);
  return true;
});

export async function leave() {
  await api.signOut();
  current = null;
}

/** Asks over the page as it is, so that a comment half written is still there afterwards. One dialog at a time. */
export function ask() {
  asking ??= new Promise((resolve) => {
    const wasHere = current !== null;
    const name = element("input", { name: "user", autocomplete: "username", required: true, value: current?.user ?? "", autofocus: true });
    const password = element("input", { name: "password", type: "password", autocomplete: "current-password", required: true });
    const problem = element("p", { class: "problem", role: "alert" });
    const button = element("button", { class: "main" }, t("session.sign_in"));
    const form = element(
      "form",
      { class: "sign-in" },
      element("p", { class: "brand" }, "slidestream"),
      element("h1", { id: "sign-in-title" }, t("session.title")),
      element("p", { class: "quiet" }, t(wasHere ? "session.ran_out" : "session.why")),
      field(t("session.user"), name),
      field(t("session.password"), password),
      problem,
      button,
    );
    const box = element("dialog", { class: "sign-in", "aria-labelledby": "sign-in-title" }, form);
    box.addEventListener("cancel", (event) => event.preventDefault());
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      button.disabled = true;
      problem.textContent = "";
      try {
        const answer = take(await api.signIn(name.value, password.value));
        asking = null;
        box.close();
        box.remove();
        resolve(answer);
      } catch (error) {
        problem.textContent = explain(error);
        password.value = "";
        password.focus();
      } finally {
        button.disabled = false;
      }
    });
    document.body.append(box);
    box.showModal();
    (wasHere ? password : name).focus();
  });
  return asking;
}
