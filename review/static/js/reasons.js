// Why a slide or patch failed. The pipeline says it in English; the page says what kind of reason that is in its own
// language, with the pipeline's own words kept beside it: they name the tile, the file, the error.

import { currentLanguage, t } from "./i18n.js";

const KINDS = [
  [/^does not exist|is not there any more/, "gone"],
  [/^is a folder|^is neither a file/, "no_file"],
  [/permission denied/, "permission"],
  [/^is empty/, "empty"],
  [/is not a slide in a format/, "no_slide"],
  [/does not say its µm per pixel|cannot be right \(expected|must hold one or two numbers/, "mpp"],
  [/was replaced by another|changed while/, "replaced"],
  [/no part of it can be read/, "unreadable"],
  [/^OpenSlide cannot (open|describe) it/, "openslide"],
  [/more than \d+ GiB/, "memory"],
  [/killed|died|crashed|quarantine|signal|worker/i, "crash"],
  [/is damaged|is cut short|JPEG|TIFF|tile|decod|Cannot read/i, "damaged"],
  [/^interrupted/, "interrupted"],
  [/^cancelled/, "cancelled"],
  [/^cannot be (read|used|opened)/, "unreadable"],
];

/** In English the pipeline's words; else the kind of reason, and the words in brackets. */
export function inWords(reason) {
  if (!reason || currentLanguage() === "en") return reason ?? "";
  const words = reason.replace(/^\d+ of them: /, "");
  const kind = KINDS.find(([pattern]) => pattern.test(words))?.[1] ?? "other";
  return t("reason.with_detail", { kind: t(`reason.${kind}`), detail: reason });
}
