// Makes elements without markup in strings: nothing that a server or a person wrote is ever read as HTML.

/** element("button", {class: "big", onclick: f, "aria-pressed": "true"}, "text", child, ...) */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key === "value" || key === "checked" || key === "disabled" || key === "selected") made[key] = value;
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

export function replace(parent, ...children) {
  parent.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return parent;
}

/**
 * Replaces what is inside only where it differs: what has the focus, is selected or is being pressed stays while others work.
 * What is kept keeps its listeners, so they must not depend on what was shown.
 */
export function refill(parent, ...children) {
  const made = replace(parent.cloneNode(false), ...children);
  if (made.childNodes.length !== parent.childNodes.length) parent.replaceChildren(...made.childNodes);
  else [...made.childNodes].forEach((child, i) => parent.childNodes[i].isEqualNode(child) || parent.childNodes[i].replaceWith(child));
  return parent;
}

/** Makes these the children, in this order; those that are in their place already are not touched. */
export function arrange(parent, children) {
  const wanted = new Set(children);
  for (const child of [...parent.children]) if (!wanted.has(child)) child.remove();
  children.forEach((child, i) => parent.children[i] === child || parent.insertBefore(child, parent.children[i] ?? null));
  return parent;
}

/** Calls once, when no call has come for this many milliseconds. */
export function debounce(milliseconds, call) {
  let timer = 0;
  const later = (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => call(...values), milliseconds);
  };
  later.cancel = () => clearTimeout(timer);
  return later;
}

/** A labelled field: the label belongs to the control by nesting. */
export function field(label, control, attributes = {}) {
  return element("label", { class: "field", ...attributes }, element("span", {}, label), control);
}

export function choice(options, chosen, onchange, attributes = {}) {
  return element(
    "select",
    { ...attributes, onchange: (event) => onchange(event.target.value) },
    options.map(([value, label]) => element("option", { value, selected: value === chosen }, label)),
  );
}

let asked = 0;

/** A modal dialog of the browser's own: focus stays inside, Esc closes, focus goes back. Removed when it closes. */
export function dialog(title, ...children) {
  asked += 1;
  const id = `dialog-title-${asked}`;
  const made = element("dialog", { "aria-labelledby": id }, element("h2", { id, tabindex: -1, autofocus: true }, title), ...children);
  made.addEventListener("close", () => made.remove());
  document.body.append(made);
  made.showModal();
  return made;
}

export const reducedMotion = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
