// What the server tells by itself (server-sent events). One connection for the page; it comes back by itself.

import * as api from "./api.js";

const AGAIN_MS = 5000;
// A browser has six connections to a server for all of its tabs: those that nobody sees must not hold them.
const HIDDEN_MS = 5000;

let source = null;
let key = null;
let wanted = false;
let hiding = 0;
let timer = 0;
let connected = false;
const listeners = new Set();

/** Calls listener(event) for every event; returns what stops it. {"type": "connection", "connected"} is the page's own. */
export function listen(listener) {
  listeners.add(listener);
  listener({ type: "connection", connected });
  return () => listeners.delete(listener);
}

function tell(event) {
  for (const listener of [...listeners]) listener(event);
}

function setConnected(value) {
  if (connected === value) return;
  connected = value;
  tell({ type: "connection", connected });
}

/** Whoever shows something asks once more. */
export const catchUp = () => tell({ type: "caught-up" });

/** Connect, as one who has this slide open (null: none). */
export function connect(slide = null) {
  if (source && key === slide && source.readyState !== EventSource.CLOSED) return;
  close();
  key = slide;
  wanted = true;
  if (document.hidden) return;
  source = new EventSource(api.eventsAddress(slide));
  source.addEventListener("open", () => {
    setConnected(true);
    // What happened while there was no connection is not told again: whoever shows something asks once more.
    catchUp();
  });
  source.addEventListener("error", () => {
    setConnected(false);
    if (source.readyState === EventSource.CLOSED) comeBack(slide);
  });
  source.addEventListener("message", (message) => {
    try {
      tell(JSON.parse(message.data));
    } catch (error) {
      console.warn("an event that is no JSON", error);
    }
  });
}

/** The browser gives up where the server refuses. If that is for want of a session, asking for one is up to the page. */
function comeBack(slide) {
  clearTimeout(timer);
  timer = setTimeout(async () => {
    try {
      await api.stillHere();
    } catch (error) {
      if (error.code !== "signed_out") comeBack(slide);
      return;
    }
    connect(slide);
  }, AGAIN_MS);
}

document.addEventListener("visibilitychange", () => {
  clearTimeout(hiding);
  if (document.hidden) hiding = setTimeout(close, HIDDEN_MS);
  else if (wanted) connect(key);
});

export function disconnect() {
  wanted = false;
  close();
}

function close() {
  clearTimeout(timer);
  source?.close();
  source = null;
  connected = false;
}
