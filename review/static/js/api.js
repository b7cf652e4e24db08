// Every request to the server. A changing request carries the session's token; a refusal becomes an ApiError.

export class ApiError extends Error {
  constructor(message, { code = "", status = 0, body = {} } = {}) {
    super(message);
    this.code = code;
    this.status = status;
    this.body = body;
    this.values = body;
  }
}

let csrf = "";
let onSignedOut = () => {};
let renewToken = async () => false;

export const useToken = (token) => (csrf = token);
export const whenSignedOut = (call) => (onSignedOut = call);
/** call(): true where the same person has signed in anew, in another window; the token is the new one then. */
export const whenTokenIsOld = (call) => (renewToken = call);

async function refused(answer) {
  let body = {};
  try {
    body = await answer.json();
  } catch {
    // An error page of a proxy: its status says enough.
  }
  const error = new ApiError(body.error ?? `${answer.status} ${answer.statusText}`, {
    code: body.code ?? (answer.status === 401 ? "signed_out" : ""),
    status: answer.status,
    body,
  });
  return error;
}

async function ask(path, options = {}, quiet = false) {
  let answer;
  try {
    answer = await fetch(path, { credentials: "same-origin", cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(error.message, { code: "unreachable" });
  }
  if (answer.ok) return answer;
  const error = await refused(answer);
  if (error.code === "signed_out" && !quiet) onSignedOut();
  throw error;
}

const query = (values) => {
  const kept = Object.entries(values).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return kept.length ? `?${new URLSearchParams(kept)}` : "";
};
const json = async (path, options, quiet) => {
  const answer = await ask(path, options, quiet);
  return answer.status === 204 ? null : answer.json();
};
const changing = (method, body) => ({ method, headers: { "Content-Type": "application/json", "X-CSRF": csrf }, body: JSON.stringify(body) });
/** ask(options), once more where only the token was of an earlier session of the same person. */
async function renewed(ask, method, body) {
  try {
    return await ask(changing(method, body));
  } catch (error) {
    if (error.code !== "csrf" || !(await renewToken())) throw error;
    return ask(changing(method, body));
  }
}
const change = (method, path, body, quiet) => renewed((options) => json(path, options, quiet), method, body);
const slide = (key) => `/api/slides/${encodeURIComponent(key)}`;

export const session = () => json("/api/session", {}, true);
export const stillHere = () => json("/api/session");
export const signIn = (user, password) => change("POST", "/api/session", { user, password }, true);
export const signOut = () => change("DELETE", "/api/session", {}, true);
export const worklist = (values, signal) => json(`/api/worklist${query(values)}`, { signal });
export const operations = () => json("/api/operations");
export const slideDetail = (key) => json(slide(key));
export const patch = (key, column, row, signal) => json(`${slide(key)}/patch${query({ column, row })}`, { signal });
export const regions = (key, values, signal) => json(`${slide(key)}/regions${query(values)}`, { signal });
export const review = (key) => json(`${slide(key)}/review`);
export const act = (key, revision, name, fields = {}) => change("POST", `${slide(key)}/acts`, { revision, act: name, ...fields });
export async function label(key, image) {
  return (await renewed((options) => ask(`${slide(key)}/labels`, options), "POST", { image })).blob();
}
export const log = (key) => json(`${slide(key)}/log`);
export const heat = async (key, from) => (await ask(`${slide(key)}/heat${query({ from })}`)).arrayBuffer();

export const tileAddress = (key, level, column, row, icc) => `${slide(key)}/tile/${level}/${column}_${row}.jpg?icc=${icc ? 1 : 0}`;
export const pictureAddress = (key, [x, y, w, h], px) =>
  `${slide(key)}/region.jpg${query({ x: Math.round(x), y: Math.round(y), w: Math.round(w), h: Math.round(h), px })}`;
export const exportAddress = (key, format, lang) => `${slide(key)}/export/${format}${query({ lang })}`;
export const eventsAddress = (key) => `/api/events${query({ slide: key })}`;

/** A file of the server's, with the name that the server gives it. */
export async function download(address, otherwise) {
  const answer = await ask(address);
  const disposition = answer.headers.get("content-disposition") ?? "";
  const coded = /filename\*=utf-8''([^;]+)/i.exec(disposition)?.[1];
  const name = coded ? decodeURIComponent(coded) : /filename="([^"]+)"/.exec(disposition)?.[1];
  return { blob: await answer.blob(), name: name ?? otherwise };
}
