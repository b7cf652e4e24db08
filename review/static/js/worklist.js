// The worklist: every slide, urgent and likely ones first. Values change in place; rows move only when nobody is at them.

import * as api from "./api.js";
import { choice, debounce, element, field, replace } from "./dom.js";
import { number, time } from "./format.js";
import { t } from "./i18n.js";
import { useKeys } from "./keys.js";
import { listen } from "./live.js";
import { explain } from "./notices.js";
import { row as tableRow } from "./worklist_row.js";

const PAGE = 100;
const STATES = ["waiting", "running", "complete", "partial", "failed"];
const REVIEWS = ["new", "in_review", "reopened", "signed"];
const COLUMNS = [
  { name: "urgency" },
  { name: "id" },
  { name: "state" },
  { name: "score", number: true },
  { name: "tumour_mm2", number: true },
  { name: "arrived" },
  { name: "review" },
];

/** The filters live in the address, so that "back" and a bookmark find them again. */
function filtersOf(values) {
  const filters = { q: "", state: "", urgency: "", review: "", reviewer: "", sort: "", order: "", offset: 0 };
  for (const name of Object.keys(filters)) if (values.has(name)) filters[name] = values.get(name);
  filters.offset = Math.max(0, Number(filters.offset) || 0);
  return filters;
}

export function worklistPage(values) {
  let filters = filtersOf(values);
  let keys = []; // slides shown, in order
  let rows = new Map(); // key → <tr>
  let pending = null; // an answer that would move rows while somebody is at them
  let left = false;
  let asked = null;
  let stop = () => {};

  const body = element("tbody", {});
  const count = element("p", { class: "count", role: "status" });
  const connection = element("p", { class: "quiet connection", role: "status" });
  const news = element("div", { role: "status", class: "news" });
  const pages = element("nav", { class: "pages", "aria-label": t("worklist.pages") });
  const heads = element("tr", {});
  const search = element("input", { type: "search", value: filters.q, autocomplete: "off", spellcheck: "false" });
  const reviewer = element("input", { type: "search", value: filters.reviewer, autocomplete: "off" });

  function remember() {
    const kept = Object.entries(filters).filter(([, value]) => value !== "" && value !== 0);
    history.replaceState(null, "", kept.length ? `#/?${new URLSearchParams(kept)}` : "#/");
  }

  function change(values) {
    // What is typed counts also while its delay is running.
    filters = { ...filters, q: search.value.trim(), reviewer: reviewer.value.trim(), offset: 0, ...values };
    remember();
    load({ byPerson: true });
  }

  function sortBy(name) {
    const order = filters.sort !== name ? "asc" : filters.order === "asc" ? "desc" : "";
    change(order ? { sort: name, order } : { sort: "", order: "" });
  }

  function showHeads() {
    replace(
      heads,
      COLUMNS.map(({ name, number: isNumber }) => {
        const sorted = filters.sort === name ? (filters.order === "desc" ? "descending" : "ascending") : null;
        const arrow = { ascending: " ▲", descending: " ▼" }[sorted] ?? "";
        return element(
          "th",
          { scope: "col", "aria-sort": sorted, class: isNumber ? "number" : null },
          element("button", { type: "button", class: "sort", onclick: () => sortBy(name) }, t(`column.${name}`), element("span", { "aria-hidden": "true" }, arrow)),
        );
      }),
    );
  }

  const busy = () => body.contains(document.activeElement) || (body.matches(":hover") && matchMedia("(hover: hover)").matches);

  function put(answer, { mark = false } = {}) {
    pending = null;
    replace(news);
    const before = new Set(keys);
    const focused = keys.find((key) => rows.get(key)?.contains(document.activeElement));
    const old = rows;
    rows = new Map();
    keys = answer.slides.map((slide) => slide.key);
    for (const slide of answer.slides) {
      const isNew = (mark && !before.has(slide.key)) || old.get(slide.key)?.classList.contains("new");
      rows.set(slide.key, tableRow(slide, isNew));
    }
    replace(body, [...rows.values()]);
    if (focused && rows.has(focused)) rows.get(focused).querySelector("a").focus({ preventScroll: true });
    if (!keys.length) replace(body, element("tr", {}, element("td", { colspan: COLUMNS.length, class: "empty" }, t(anyFilter() ? "worklist.none_match" : "worklist.none"))));
    showCount(answer.total);
  }

  const anyFilter = () => Boolean(filters.q || filters.state || filters.urgency || filters.review || filters.reviewer);

  function showCount(total) {
    const first = total ? filters.offset + 1 : 0;
    count.textContent = t(total > keys.length ? "worklist.count_part" : "worklist.count", {
      n: number(total), from: number(first), to: number(filters.offset + keys.length),
    });
    const turn = (by, text) =>
      element("button", { type: "button", onclick: () => change({ offset: filters.offset + by }), disabled: by < 0 ? filters.offset === 0 : filters.offset + PAGE >= total }, text);
    replace(pages, total > PAGE ? [turn(-PAGE, t("worklist.earlier")), turn(PAGE, t("worklist.later"))] : []);
  }

  /** New values at once; a new order only when nobody points at the rows or has the keyboard's focus in them. */
  function update(answer) {
    const same = answer.slides.length === keys.length && answer.slides.every((slide, i) => slide.key === keys[i]);
    if (same || !busy()) return put(answer, { mark: true });
    for (const slide of answer.slides) {
      const shown = rows.get(slide.key);
      if (!shown) continue;
      const hadFocus = shown.contains(document.activeElement);
      const made = tableRow(slide, shown.classList.contains("new"));
      shown.replaceWith(made);
      rows.set(slide.key, made);
      if (hadFocus) made.querySelector("a").focus({ preventScroll: true });
    }
    const fresh = answer.slides.filter((slide) => !rows.has(slide.key));
    const urgent = fresh.filter((slide) => slide.urgency === "stat").length;
    pending = answer;
    const text = urgent ? t("worklist.news_urgent", { n: urgent }) : fresh.length ? t("worklist.news", { n: fresh.length }) : t("worklist.news_order");
    replace(news, element("button", { type: "button", class: urgent ? "main" : null, onclick: () => put(answer, { mark: true }) }, text));
  }

  async function load({ byPerson = false } = {}) {
    asked?.abort();
    asked = new AbortController();
    try {
      const answer = await api.worklist({ ...filters, limit: PAGE }, asked.signal);
      if (left) return;
      if (byPerson) {
        showHeads();
        put(answer);
      } else update(answer);
    } catch (error) {
      if (error.name === "AbortError" || left) return;
      if (byPerson) replace(body, element("tr", {}, element("td", { colspan: COLUMNS.length, class: "empty" }, explain(error))));
      count.textContent = explain(error);
    }
  }

  const soon = debounce(300, () => load());

  function hear(event) {
    if (event.type === "connection") connection.textContent = t(event.connected ? "live.on" : "live.off");
    else if (["worklist", "review", "presence", "caught-up", "resync"].includes(event.type)) soon();
  }

  function move(by) {
    const at = keys.findIndex((key) => rows.get(key)?.contains(document.activeElement));
    const next = keys[Math.min(keys.length - 1, Math.max(0, at < 0 ? 0 : at + by))];
    rows.get(next)?.querySelector("a").focus();
  }

  return {
    name: "worklist",
    async enter(root) {
      useKeys([
        { keys: ["n", "ArrowDown"], text: "keys.next_slide", run: () => move(1) },
        { keys: ["p", "ArrowUp"], text: "keys.previous_slide", run: () => move(-1) },
        { keys: ["Enter"], text: "keys.open_slide", run: () => (rows.get(keys[0]) ? rows.get(keys[0]).querySelector("a").click() : false) },
        { keys: ["/"], text: "keys.search", run: () => search.focus() },
      ]);
      for (const typed of [search, reviewer]) typed.addEventListener("input", debounce(250, () => left || change({})));
      const all = (name) => ["", t(`worklist.all_${name}`)];
      root.append(
        element("h1", {}, t("page.worklist")),
        element(
          "form",
          { class: "filters", role: "search", onsubmit: (event) => event.preventDefault() },
          field(t("worklist.search"), search, { class: "field wide" }),
          field(t("column.state"), choice([all("states"), ...STATES.map((name) => [name, t(`state.${name}`)])], filters.state, (state) => change({ state }))),
          field(t("column.urgency"), choice([all("urgencies"), ["stat", t("urgency.stat")], ["routine", t("urgency.routine")]], filters.urgency, (urgency) => change({ urgency }))),
          field(t("column.review"), choice([all("reviews"), ["unsigned", t("worklist.unsigned")], ...REVIEWS.map((name) => [name, t(`review.${name}`)])], filters.review, (review) => change({ review }))),
          field(t("worklist.reviewer"), reviewer),
        ),
        element("div", { class: "line" }, count, news, element("span", { class: "grow" }), connection),
        element(
          "div",
          { class: "scroll" },
          element("table", { class: "worklist" }, element("caption", { class: "hidden" }, t("worklist.caption")), element("thead", {}, heads), body),
        ),
        pages,
      );
      // When nobody is at the rows any more, what waited comes.
      body.addEventListener("pointerleave", () => pending && !busy() && put(pending, { mark: true }));
      body.addEventListener("focusout", () => setTimeout(() => pending && !busy() && put(pending, { mark: true })));
      await load({ byPerson: true });
      stop = listen(hear);
    },
    goTo(values) {
      const wanted = filtersOf(values);
      if (JSON.stringify(wanted) === JSON.stringify(filters)) return true;
      return false;
    },
    leave() {
      left = true;
      stop();
      soon.cancel();
      asked?.abort();
    },
  };
}
