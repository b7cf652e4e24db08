// What the pipeline is doing: stages, queues, GPUs, speed, what holds up the rest, what failed.

import * as api from "./api.js";
import { element, refill, replace } from "./dom.js";
import { NONE, fullTime, number, time } from "./format.js";
import { t } from "./i18n.js";
import { useKeys } from "./keys.js";
import { explain } from "./notices.js";
import { inWords } from "./reasons.js";
import { listAddress } from "./worklist.js";

const EVERY = 5000;

function table(caption, heads, rows) {
  if (!rows.length) return null;
  return element(
    "table",
    { class: "figures" },
    element("caption", {}, caption),
    element("thead", {}, element("tr", {}, heads.map((head, i) => element("th", { scope: "col", class: i ? "number" : null }, head)))),
    element("tbody", {}, rows.map((row) => element("tr", {}, row.map((cell, i) => element(i ? "td" : "th", i ? { class: "number" } : { scope: "row" }, cell))))),
  );
}

function fact(label, value) {
  return element("div", { class: "fact" }, element("dt", {}, label), element("dd", {}, value));
}

const seconds = (value) => (value === null || value === undefined ? NONE : `${number(value, value < 10 ? 1 : 0)} s`);

function plain(value) {
  if (value === null || value === undefined || value === "") return NONE;
  if (typeof value === "number") return number(value, Number.isInteger(value) ? 0 : 2);
  if (typeof value === "object") return Object.entries(value).map(([key, inner]) => `${key}: ${plain(inner)}`).join(", ");
  return String(value);
}

function content(now) {
  const stages = Object.entries(now.stages ?? {});
  const share = (stage) => {
    const all = (stage.working_s ?? 0) + (stage.waiting_input_s ?? 0) + (stage.waiting_room_s ?? 0);
    return all > 0 ? `${number((100 * stage.working_s) / all)} %` : NONE;
  };
  return [
    element("p", { class: "verdict" }, now.bottleneck || t("operations.no_verdict")),
    element(
      "dl",
      { class: "facts" },
      fact(t("operations.source"), t(`operations.source.${now.source}`, {}, now.source ?? NONE)),
      fact(t("operations.speed"), now.patches_per_s === undefined || now.patches_per_s === null ? NONE : t("operations.per_s", { n: number(now.patches_per_s) })),
      Object.entries(now.slides ?? {}).map(([name, n]) => fact(t(`operations.slides.${name}`, {}, name), plain(n))),
    ),
    table(
      t(now.lately ? "operations.lately" : "operations.stages"),
      ["stage", "workers", "busy", "working", "input", "room", "restarts"].map((name) => t(`operations.${name}`)),
      stages.map(([name, stage]) => [
        t(`stage.${name}`, {}, name), plain(stage.workers), share(stage),
        seconds(stage.working_s), seconds(stage.waiting_input_s), seconds(stage.waiting_room_s), plain(stage.restarts),
      ]),
    ),
    table(t("operations.queues"), [t("operations.queue"), t("operations.filled")], Object.entries(now.queues ?? {}).map(([name, value]) => [name, plain(value)])),
    table(t("operations.lost"), [t("operations.stage"), ""], Object.entries(now.lost ?? {})),
    table(
      "GPU", [t("operations.gpu"), t("operations.load"), t("operations.memory")],
      (now.gpus ?? []).map((gpu, i) => [gpu.name ?? `GPU ${i}`, plain(gpu.load ?? gpu.gpu_load), plain(gpu.memory ?? gpu.memory_mib ?? gpu.gpu_mib)]),
    ),
    element(
      "section", {},
      element("h2", {}, t("operations.failures")),
      (now.failures ?? []).length
        ? element("ul", { class: "failures" }, now.failures.map((failure) =>
            typeof failure === "string"
              ? element("li", {}, failure)
              : element("li", {}, failure.key ? element("a", { href: `#/slide/${failure.key}` }, failure.slide) : element("strong", {}, failure.slide ?? failure.name ?? ""), failure.time ? ` · ${time(failure.time)}` : "", element("br"), failure.reason ? inWords(failure.reason) : plain(failure)),
          ))
        : element("p", { class: "quiet" }, t("operations.no_failures")),
    ),
  ];
}

export function operationsPage() {
  let timer = 0;
  let left = false;
  const body = element("div", { class: "body" });
  const when = element("p", { class: "quiet", role: "status" });

  async function refresh(first = false) {
    try {
      const now = await api.operations();
      if (left) return;
      refill(body, content(now));
      when.textContent = t("operations.as_of", { time: fullTime(now.at ?? new Date().toISOString()) });
      timer = setTimeout(refresh, now.live === false ? 3 * EVERY : EVERY);
    } catch (error) {
      if (left) return;
      if (first) replace(body, element("p", { class: "problem" }, explain(error)));
      else when.textContent = explain(error);
      timer = setTimeout(refresh, EVERY);
    }
  }

  return {
    name: "operations",
    async enter(root) {
      useKeys([{ keys: ["Escape"], text: "keys.worklist", run: () => (location.hash = listAddress()) }]);
      root.append(element("h1", {}, t("page.operations")), when, body);
      await refresh(true);
    },
    leave() {
      left = true;
      clearTimeout(timer);
    },
  };
}
