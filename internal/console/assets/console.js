// Updates the live parts of a page, and lets / enter the search. Without this script, pages work and are not updated.
"use strict";

document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select")) return;
  event.preventDefault();
  document.getElementById("find")?.focus();
});

for (const live of document.querySelectorAll("[data-live]")) {
  const again = 3000, silence = 5000, address = live.dataset.live, stale = document.getElementById("stale");
  let source, page, last = false, came = Date.now(), heard = came;
  const began = came;
  const shown = new Map(), shownAt = new Map(); // by part, the HTML as it came, and when
  const clock = (at) => new Date(at).toISOString().slice(11, 19);
  const isUsed = (part) => {
    const selected = document.getSelection();
    if (selected && !selected.isCollapsed && part.contains(selected.anchorNode)) return true; // text is selected
    return !last && part.querySelector(":is(a, button):hover") !== null; // the pointer is on a link or button
  };
  const replace = (part, renewed) => { // false: later
    const name = part.dataset.part, html = renewed.innerHTML;
    if (shown.get(name) === html) return true;
    if (part.querySelector(":is(a, button):active")) return false; // else a click would be lost
    const held = part.hasAttribute("data-hold") && isUsed(part); // a list must not move under the pointer
    const note = part.querySelector(".held");
    if (note) {
      note.hidden = !held;
      note.querySelector("span").textContent = clock(shownAt.get(name) ?? began);
    }
    if (held) return false;
    shown.set(name, html);
    shownAt.set(name, came);
    const focused = [...part.querySelectorAll("a, button, input")].indexOf(document.activeElement);
    part.replaceChildren(...renewed.childNodes);
    if (focused >= 0) part.querySelectorAll("a, button, input")[focused]?.focus({ preventScroll: true });
    return true;
  };
  const show = () => {
    if (page === undefined) return;
    const html = page;
    let waiting = false;
    const template = document.createElement("template");
    template.innerHTML = html;
    page = undefined;
    const renewed = template.content.querySelector("[data-live]");
    if (!renewed) return;
    const badge = document.getElementById("badge");
    if (badge) {
      badge.textContent = renewed.dataset.letters;
      badge.hidden = !renewed.dataset.letters;
    }
    for (const part of renewed.querySelectorAll("[data-part]")) {
      const old = live.querySelector(`[data-part="${part.dataset.part}"]`);
      if (old && !replace(old, part)) waiting = true;
    }
    if (waiting) page = html;
  };
  const isStale = (yes) => {
    stale.querySelector("span").textContent = yes ? ` since ${clock(came)} UTC` : "";
    stale.hidden = !yes;
    live.classList.toggle("stale", yes);
  };
  const close = () => {
    source?.close();
    source = undefined;
  };
  const receive = (event) => {
    page = event.data;
    came = heard = Date.now();
    isStale(false);
    show();
  };
  const open = () => {
    if (source || last || document.hidden) return; // a hidden page needs no updates
    source = new EventSource(address);
    heard = Date.now(); // it may take a while to answer
    source.onerror = () => {
      isStale(true);
      if (source?.readyState === EventSource.CLOSED) { // the browser does not reconnect: the worker may be starting
        close();
        setTimeout(open, again);
      }
    };
    source.addEventListener("part", receive);
    source.addEventListener("last", (event) => { last = true; close(); receive(event); });
  };
  open();
  setInterval(() => {
    show(); // a list that was held
    if (!last && Date.now() - heard > silence) isStale(true); // a worker that is frozen does not close the stream
  }, 1000);
  document.addEventListener("visibilitychange", () => document.hidden ? close() : open());
}
