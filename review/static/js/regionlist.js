// What there is to judge on a slide: the model's regions at the settings of the review, what was judged at other settings,
// and what was drawn by hand. Pure.

import { boxOf, rings } from "./outlines.js";

/** [{id, kind, rank, label, class, max, mean, area_um2, patches, bbox, rings, verdict, comment, by, at}] in ranked order. */
export function listed(regions, findings) {
  const judged = new Map(findings.map((finding) => [finding.id, finding]));
  const items = regions.map((region) => {
    const finding = judged.get(region.id);
    judged.delete(region.id);
    return item(region, finding, String(region.rank), "region", [...rings(region.outline), ...(region.holes ?? [])]);
  });
  // Judged while the threshold was another one: the verdict stands, so the region stays.
  const rest = [...judged.values()];
  for (const finding of rest.filter(({ kind }) => kind !== "drawn")) items.push(item(finding, finding, "*", "earlier", rings(finding.outline)));
  rest.filter(({ kind }) => kind === "drawn").forEach((finding, i) => items.push(item(finding, finding, drawnLabel(i), "drawn", rings(finding.outline))));
  return items;
}

const drawnLabel = (i) => String.fromCharCode(65 + (i % 26)) + (i >= 26 ? Math.floor(i / 26) : "");

function item(region, finding, label, kind, outline) {
  return {
    id: region.id,
    kind,
    label,
    rank: region.rank ?? null,
    class: region.class ?? null,
    max: region.max ?? null,
    mean: region.mean ?? null,
    area_um2: region.area_um2 ?? null,
    patches: region.patches ?? null,
    bbox: region.bbox ?? boxOf(region.outline),
    rings: outline,
    verdict: finding?.verdict ?? null,
    comment: finding?.comment ?? "",
    by: finding?.by ?? null,
    at: finding?.at ?? null,
  };
}

/** What a region has become: itself, or the one that shares most with its box, as its patches or the settings have changed; or null. */
export function successor(item, items) {
  const same = items.find(({ id }) => id === item.id);
  if (same) return same;
  const shared = ({ bbox: [x, y, w, h] }) => {
    const [ox, oy, ow, oh] = item.bbox;
    const [right, down] = [Math.min(x + w, ox + ow) - Math.max(x, ox), Math.min(y + h, oy + oh) - Math.max(y, oy)];
    return right > 0 && down > 0 ? right * down : 0;
  };
  const found = items.filter(({ kind }) => kind === "region").map((other) => [shared(other), other]);
  const [most, best] = found.reduce((before, pair) => (pair[0] > before[0] ? pair : before), [0, null]);
  return most > 0 ? best : null;
}

/** {accepted, rejected, unsure, none}: how many of each. */
export function tally(items) {
  const counts = { accepted: 0, rejected: 0, unsure: 0, none: 0 };
  for (const { verdict } of items) counts[verdict ?? "none"] += 1;
  return counts;
}

/** The part of the slide that a thumbnail shows: the region with surroundings, 4:3, at least 150 µm wide, cut to the slide. */
export function frame([x, y, w, h], { width, height, mpp }) {
  const least = mpp ? 150 / mpp : 300;
  let [fw, fh] = [Math.max(1.3 * w, least), Math.max(1.3 * h, 0.75 * least)];
  if (fw * 3 > fh * 4) fh = (fw * 3) / 4;
  else fw = (fh * 4) / 3;
  const scale = Math.min(1, width / fw, height / fh);
  [fw, fh] = [fw * scale, fh * scale];
  const place = (middle, length, limit) => Math.min(Math.max(0, middle - length / 2), Math.max(0, limit - length));
  return [place(x + w / 2, fw, width), place(y + h / 2, fh, height), fw, fh];
}
