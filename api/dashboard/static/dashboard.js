// Every page: keys, folded runs, copying, what happens meanwhile, and the way out.
"use strict";
(() => {
  const { base, token, last } = document.body.dataset;
  const rows = () => [...document.querySelectorAll("tr[data-href]")].filter((row) => row.offsetParent);
  let at = -1;

  function move(step) {
    const all = rows();
    if (!all.length) return;
    all[at]?.classList.remove("here");
    at = Math.max(0, Math.min(all.length - 1, at + step));
    all[at].classList.add("here");
    all[at].scrollIntoView({ block: "nearest" });
  }

  document.addEventListener("keydown", (event) => {
    if (event.target.closest("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "j") move(1);
    else if (event.key === "k") move(-1);
    else if (event.key === "Enter" && at >= 0 && event.target === document.body) location.href = rows()[at].dataset.href;
    else if (event.key === "t") location.href = base + "/ui/timeline";
    else if (event.key === "/") {
      const field = document.querySelector("input[type=search]");
      event.preventDefault();
      if (field) field.focus();
      else location.href = base + "/ui/timeline";
    }
  });

  document.addEventListener("click", (event) => {
    const unfold = event.target.closest(".unfold");
    if (unfold) {
      const folded = unfold.closest("tbody").nextElementSibling;
      folded.hidden = !folded.hidden;
      unfold.setAttribute("aria-expanded", String(!folded.hidden));
    }
    const copy = event.target.closest(".copy");
    if (copy) navigator.clipboard?.writeText(copy.dataset.copy);
  });

  document.getElementById("logout")?.addEventListener("click", async () => {
    await fetch(base + "/ui/logout", { method: "POST", headers: { "x-csrf-token": token } });
    location.href = base + "/ui/login";
  });

  // What is live stands at the right end of a tree.
  for (const tree of document.querySelectorAll("svg.tree")) tree.parentElement.scrollLeft = tree.parentElement.scrollWidth;

  // Empty fields do not belong in a view's address.
  for (const form of document.querySelectorAll("form[method=get]"))
    form.addEventListener("submit", () => {
      for (const field of form.elements) if (field.name && !field.value) field.disabled = true;
    });

  // What happens meanwhile: a table that is live gets its new rows, other pages a line that says so.
  const table = document.querySelector("table[data-live=yes]");
  const offline = document.getElementById("offline");
  const news = document.getElementById("news");
  const connection = document.getElementById("connection");
  let since = null;

  async function more() {
    const first = table?.querySelector("tr[data-seq]");
    const from = first ? Number(first.dataset.seq) + 1 : 0;
    const query = new URLSearchParams(location.search);
    query.set("min_seq", String(from));
    query.set("limit", "100");
    const reply = await fetch(base + "/ui/rows?" + query);
    if (!reply.ok) return;
    const page = new DOMParser().parseFromString(await reply.text(), "text/html");
    const bodies = [...page.querySelectorAll("tbody")];
    for (const body of bodies) for (const row of body.rows) row.classList.add("fresh");
    table.tHead.after(...bodies);
    setTimeout(() => { for (const row of table.querySelectorAll("tr.fresh")) row.classList.remove("fresh"); }, 3000);
  }

  let busy = false;
  let again = false;
  async function changed() {
    if (busy) { again = true; return; }
    busy = true;
    try {
      if (table) await more();
      news.textContent = "The model has changed since this page was made. ";
      const link = document.createElement("a");
      link.href = location.href;
      link.textContent = "Show it as it is now";
      news.append(link);
      news.hidden = Boolean(document.querySelector("form.act output:not(:empty)"));
    } finally {
      busy = false;
      if (again) { again = false; changed(); }
    }
  }

  function listen() {
    const source = new EventSource(`${base}/v1/models/events?after=${last}`);
    source.addEventListener("message", changed);
    source.addEventListener("open", () => {
      if (since) changed();
      since = null;
      offline.hidden = true;
      if (connection) connection.textContent = "● live";
    });
    source.addEventListener("error", () => {
      since ??= new Date();
      offline.textContent = `The server does not answer since ${since.toLocaleTimeString()}; what is shown is from then. Trying again…`;
      offline.hidden = false;
      if (connection) connection.textContent = "○ not connected";
      if (source.readyState === EventSource.CLOSED) setTimeout(listen, 2000);
    });
    addEventListener("pagehide", () => source.close());
  }
  listen();
})();
