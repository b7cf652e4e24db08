// All texts, in one file a language. A text is asked for by its key, and with what fills its {places}.

export const LANGUAGES = { en: "English", zh: "简体中文" };
const STORED = "slidestream.language";

let texts = {};
let language = "en";

function preferred() {
  const stored = localStorage.getItem(STORED);
  if (stored in LANGUAGES) return stored;
  return navigator.languages.some((name) => name.toLowerCase().startsWith("zh")) &&
    !navigator.languages[0].toLowerCase().startsWith("en")
    ? "zh"
    : "en";
}

export async function loadTexts(wanted = preferred()) {
  const answer = await fetch(`/static/i18n/${wanted}.json`);
  if (!answer.ok) throw new Error(`texts for ${wanted}: ${answer.status}`);
  texts = await answer.json();
  language = wanted;
  document.documentElement.lang = wanted === "zh" ? "zh-Hans" : wanted;
}

export async function chooseLanguage(wanted) {
  localStorage.setItem(STORED, wanted);
  await loadTexts(wanted);
}

export const currentLanguage = () => language;

/** The text; `otherwise`, if given, where there is none. A missing text shows its key: ugly, so that it is seen. */
export function t(key, values = {}, otherwise = key) {
  const text = texts[key] ?? otherwise;
  return text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}
