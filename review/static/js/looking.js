// A glance is not a review: whoever has had a slide before their eyes for a while is reviewing it.

const LOOKED_S = 20;

/** Calls once, when the page has been seen for so long. Gives what stops that. */
export function whenLookedAt(call) {
  let seen = 0;
  const timer = setInterval(() => {
    if (document.hidden) return;
    seen += 1;
    if (seen < LOOKED_S) return;
    clearInterval(timer);
    call();
  }, 1000);
  return () => clearInterval(timer);
}
