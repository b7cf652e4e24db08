// The worklist: every slide, urgent and likely ones first. Values change in place; rows move only when nobody is at them.

import * as api from "./api.js";
import { Connection } from "./connection.js";
import { arrange, choice, debounce, element, field, replace } from "./dom.js";
import { number } from "./format.js";
import { t } from "./i18n.js";
import { useKeys } from "./keys.js";
import { listen } from "./live.js";
import { explain } from "./notices.js";
import { refresh, row as tableRow } from "./worklist_row.js";

const PAGE = 100;
const STATES = ["waiting", "running", "complete", "partial", "failed"];
const REVIEWS = ["new", "in_review", "reopened", "signed"];
const COLUMNS = [
  { name: "urgency" },
  { name: "id" },
  { name: "state" },
  { name: "score", number: true, first: "desc" },
  { name: "tumour_mm2", number: true, first: "desc" },
  { name: "arrived", first: "desc" },
  { name: "review" },
];

// Whoever comes back from a slide finds the list as it was left: filters, place, and the slide that n and p go on from.
let leftAt = { address: "#/", scrolled: 0, slide: null };

export const listAddress = () => leftAt.address;

/** The filters live in the address, so that "back" and a bookmark find them again. */
function filtersOf(values) {
  const filters = { q: "", state: "", urgency: "", review: "", reviewer: "", sort: "", order: "", offset: 0 };
  for (const name of Object.keys(filters)) if (values.has(name)) filters[name] = values.get(name);
  filters.offset = Math.max(0, Number(filters.offset) || 0);
  return filters;
}

function addressOf(filters) {
  const kept = Object.entries(filters).filter(([, value]) => value !== "" && value !== 0);
  return kept.length ? `#/?${new URLSearchParams(kept)}` : "#/";
}

export function worklistPage(values) {
  let filters = filtersOf(values);
  let keys = []; // slides shown, in order
  let shownFrom = null; // the offset of the first
  let rows = new Map(); // key → <tr>
  let pending = null; // an answer that would move rows while somebody is at them
  let left = false;
  let asked = null;
  let owed = false; // a person asked for the list, and has not got it yet
  let place = null; // the page's <main>
  let stop = () => {};

  const body = element("tbody", {});
  const count = element("p", { class: "count", role: "status" });
  const connection = new Connection(t("live.on"));
  const news = element("div", { role: "status", class: "news" });
  const turn = (by, text) => element("button", { type: "button", onclick: () => change({ offset: Math.max(0, filters.offset + by) }) }, text);
  const turns = [turn(-PAGE, t("worklist.earlier")), turn(PAGE, t("worklist.later"))];
  const pages = element("nav", { class: "pages", "aria-label": t("worklist.pages"), hidden: true }, turns);
  const heads = COLUMNS.map(({ name, number: isNumber }) =>
    element(
      "th",
      { scope: "col", class: isNumber ? "number" : null },
      element("button", { type: "button", class: "sort", onclick: () => sortBy(name) }, t(`column.${name}`), element("span", { "aria-hidden": "true" })),
    ),
  );
  const search = element("input", { type: "search", value: filters.q, autocomplete: "off", spellcheck: "false" });
  const reviewer = element("input", { type: "search", value: filters.reviewer, autocomplete: "off" });

  function remember() {
    history.replaceState(null, "", addressOf(filters));
  }

  function change(values) {
    // What is typed counts also while its delay is running.
    filters = { ...filters, q: search.value.trim(), reviewer: reviewer.value.trim(), offset: 0, ...values };
    remember();
    load({ byPerson: true });
  }

  function sortBy(name) {
    // Of figures and times the largest are wanted first.
    const orders = COLUMNS.find((column) => column.name === name).first === "desc" ? ["desc", "asc", ""] : ["asc", "desc", ""];
    const order = filters.sort !== name ? orders[0] : orders[orders.indexOf(filters.order) + 1];
    change(order ? { sort: name, order } : { sort: "", order: "" });
  }

  function showHeads() {
    COLUMNS.forEach(({ name }, i) => {
      const sorted = filters.sort === name ? (filters.order === "desc" ? "descending" : "ascending") : null;
      if (sorted) heads[i].setAttribute("aria-sort", sorted);
      else heads[i].removeAttribute("aria-sort");
      heads[i].querySelector("span").textContent = { ascending: " ▲", descending: " ▼" }[sorted] ?? "";
    });
  }

  const busy = () => body.contains(document.activeElement) || (body.matches(":hover") && matchMedia("(hover: hover)").matches);

  function put(answer, { mark = false } = {}) {
    pending = null;
    replace(news);
    const known = new Set(keys);
    const focused = keys.find((key) => rows.get(key)?.contains(document.activeElement));
    const old = rows;
    rows = new Map();
    keys = answer.slides.map((slide) => slide.key);
    for (const slide of answer.slides) {
      const isNew = (mark && !known.has(slide.key)) || old.get(slide.key)?.classList.contains("new");
      const made = tableRow(slide, isNew);
      rows.set(slide.key, old.has(slide.key) ? refresh(old.get(slide.key), made) : made);
    }
    arrange(body, [...rows.values()]);
    keepFocus(focused);
    if (!keys.length) replace(body, element("tr", {}, element("td", { colspan: COLUMNS.length, class: "empty" }, t(anyFilter() ? "worklist.none_match" : "worklist.none"))));
    showCount(answer.total);
  }

  /** A line that was moved, or whose cell was made anew, has lost it. */
  function keepFocus(key) {
    const shown = rows.get(key);
    if (shown && !shown.contains(document.activeElement)) shown.querySelector("a").focus({ preventScroll: true });
  }

  const anyFilter = () => Boolean(filters.q || filters.state || filters.urgency || filters.review || filters.reviewer);

  function showCount(total) {
    const first = total ? filters.offset + 1 : 0;
    count.textContent = t(total > keys.length ? "worklist.count_part" : "worklist.count", {
      n: number(total), from: number(first), to: number(filters.offset + keys.length),
    });
    pages.hidden = total <= PAGE && filters.offset === 0;
    turns[0].disabled = filters.offset === 0;
    turns[1].disabled = filters.offset + PAGE >= total;
  }

  /** New values at once; a new order only when nobody points at the rows or has the keyboard's focus in them. */
  function update(answer) {
    const same = answer.slides.length === keys.length && answer.slides.every((slide, i) => slide.key === keys[i]);
    if (same || !busy()) return put(answer, { mark: true });
    for (const slide of answer.slides) {
      const shown = rows.get(slide.key);
      if (!shown) continue;
      const hadFocus = shown.contains(document.activeElement);
      refresh(shown, tableRow(slide, shown.classList.contains("new")));
      if (hadFocus) keepFocus(slide.key);
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
    // News may overtake a person's own question: it is answered all the same, whoever is at the rows.
    owed ||= byPerson;
    body.classList.toggle("asked", owed);
    try {
      const from = filters.offset;
      const answer = await api.worklist({ ...filters, limit: PAGE }, asked.signal);
      if (left) return;
      if (owed) {
        showHeads();
        put(answer);
        if (from !== shownFrom && shownFrom !== null) place.scrollTop = 0;
        shownFrom = from;
      } else update(answer);
      owed = false;
      body.classList.remove("asked");
    } catch (error) {
      if (error.name === "AbortError" || left) return;
      body.classList.remove("asked");
      if (owed) replace(body, element("tr", {}, element("td", { colspan: COLUMNS.length, class: "empty" }, explain(error))));
      count.textContent = explain(error);
    }
  }

  const soon = debounce(300, () => load());

  function hear(event) {
    connection.hear(event);
    if (["worklist", "review", "presence", "caught-up", "resync"].includes(event.type)) soon();
  }

  function move(by) {
    const focused = keys.findIndex((key) => rows.get(key)?.contains(document.activeElement));
    const at = focused < 0 ? keys.indexOf(leftAt.slide) : focused;
    const next = keys[Math.min(keys.length - 1, Math.max(0, at < 0 ? 0 : at + by))];
    rows.get(next)?.querySelector("a").focus();
  }

  return {
    name: "worklist",
    async enter(root) {
      place = root;
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
        element("div", { class: "line" }, count, news, element("span", { class: "grow" }), connection.element),
        element(
          "div",
          { class: "scroll" },
          element("table", { class: "worklist" }, element("caption", { class: "hidden" }, t("worklist.caption")), element("thead", {}, element("tr", {}, heads)), body),
        ),
        pages,
      );
      // When nobody is at the rows any more, what waited comes.
      body.addEventListener("pointerleave", () => pending && !busy() && put(pending, { mark: true }));
      body.addEventListener("focusout", () => setTimeout(() => pending && !busy() && put(pending, { mark: true })));
      await load({ byPerson: true });
      if (left) return;
      if (leftAt.address === addressOf(filters)) root.scrollTop = leftAt.scrolled;
      stop = listen(hear);
    },
    goTo(values) {
      const wanted = filtersOf(values);
      if (JSON.stringify(wanted) === JSON.stringify(filters)) return true;
      return false;
    },
    leave() {
      left = true;
      const slide = /^#\/slide\/([0-9a-f]{20})/.exec(location.hash)?.[1] ?? null;
      leftAt = { address: addressOf(filters), scrolled: place?.scrollTop ?? 0, slide };
      stop();
      connection.stop();
      soon.cancel();
      asked?.abort();
    },
  };
}
