// Every page: what is live, kept so; keys, copying, folded runs, and the way out.
"use strict";
const Dashboard = (() => {
  const { base, token, last } = document.body.dataset;
  const one = (selector, within = document) => within.querySelector(selector);
  const parsed = (html) => new DOMParser().parseFromString(html, "text/html").body;
  const here = () => one("tr.here");

  function move(step) {
    // Whether a row is shown is asked of the next ones alone: it costs the layout of their group.
    const all = [...document.querySelectorAll("tr[data-href]")];
    let at = Math.max(0, all.indexOf(here()) + step);
    while (all[at] && !all[at].offsetParent) at += step;
    const next = all[at];
    if (!next) return;
    here()?.classList.remove("here");
    next.classList.add("here");
    next.scrollIntoView({ block: "nearest" });
  }

  function open(row) {
    const unfold = one(".unfold", row);
    if (unfold) unfold.click();
    else location.href = row.dataset.href;
  }

  const goes = { n: "/", t: "/ui/timeline", v: "/ui/versions" };
  document.addEventListener("keydown", (event) => {
    if (event.target.closest("input, select, textarea, dialog") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "j") move(1);
    else if (event.key === "k") move(-1);
    else if (event.key === "Enter" && here() && !event.target.closest("a, button, summary")) open(here());
    else if (event.key === "?") document.getElementById("keys").showModal();
    else if (event.key in goes) location.href = base + goes[event.key];
    else if (event.key === "/") {
      const field = one("input[type=search]");
      event.preventDefault();
      if (field) field.focus();
      else location.href = base + "/ui/timeline#words";
    }
  });
  document.getElementById("help").addEventListener("click", () => document.getElementById("keys").showModal());

  document.addEventListener("click", (event) => {
    const unfold = event.target.closest(".unfold");
    if (unfold && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      toggle(unfold);
      return;
    }
    const copy = event.target.closest(".copy");
    if (copy) {
      copied(copy.dataset.copy).then(() => {
        copy.dataset.done = "yes";
        setTimeout(() => delete copy.dataset.done, 1500);
        copy.focus();
      }, () => complain(`It could not be copied. It is ${copy.dataset.copy}`));
      return;
    }
    const row = event.target.closest("tr[data-href]");
    if (row && !event.target.closest("a, button, form") && !getSelection().toString()) open(row);
  });

  // A browser lends its clipboard to pages of this machine and over TLS; others select and copy.
  async function copied(text) {
    if (navigator.clipboard) return navigator.clipboard.writeText(text);
    const field = document.createElement("textarea");
    field.value = text;
    document.body.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    if (!done) throw new Error("nothing was copied");
  }

  // A run's rows are fetched when it is unfolded.
  async function toggle(unfold) {
    const fold = unfold.closest("tbody");
    const opened = unfold.getAttribute("aria-expanded") === "true";
    emptied(fold);
    unfold.setAttribute("aria-expanded", String(!opened));
    if (opened) return;
    const query = filters();
    for (const [name, value] of [["min_seq", fold.dataset.first], ["max_seq", fold.dataset.last], ["flat", "true"], ["limit", "100"]]) query.set(name, value);
    const page = await fetched("/ui/part/rows?" + query);
    if (unfold.getAttribute("aria-expanded") !== "true") return;
    emptied(fold);
    if (!page) { unfold.setAttribute("aria-expanded", "false"); return; }
    const table = one("table", page);
    const bodies = [...table.tBodies];
    for (const body of bodies) body.classList.add("inside");
    if (table.dataset.older) {
      const oldest = Number(bodies.at(-1).rows[0].dataset.seq);
      const rest = fold.cloneNode(true);
      Object.assign(rest.dataset, { last: String(oldest - 1), count: "" });
      rest.classList.add("inside");
      const link = one(".unfold", rest);
      link.setAttribute("aria-expanded", "false");
      link.textContent = "more of it";
      one(".range", rest).textContent = `${oldest - 1}–${fold.dataset.first}`;
      bodies.push(rest);
    }
    fold.after(...bodies);
  }

  function emptied(fold) {
    for (let next = fold.nextElementSibling; next?.classList.contains("inside"); next = fold.nextElementSibling) next.remove();
  }

  // The query of this page's table, for more of its rows.
  function filters() {
    const query = new URLSearchParams(table?.closest("main") && one(".filters[role=search]") ? location.search : "");
    for (const name of ["after", "before"]) query.delete(name);
    return query;
  }

  // Whoever is not there, or something in between, answers in the server's place at times.
  async function reached(path, options) {
    try {
      return await fetch(base + path, options);
    } catch (error) {
      if (error instanceof TypeError) return null;
      throw error;
    }
  }

  // A part of a page; null, and a word about it on top, where it did not come.
  async function fetched(path) {
    const reply = await reached(path);
    if (reply?.status === 401) ended();
    else if (!reply?.ok) complain(`${answered(reply)}, so what you asked for is not shown. Try again.`);
    if (!reply?.ok) return null;
    if (!since) offline.hidden = true;
    return parsed(await reply.text());
  }

  const answered = (reply) => (reply ? `The server answered ${reply.status}` : "The server does not answer");

  // What the ledger answered, or why there is nothing: a proxy has words of its own, and is no proof
  // that anything was done.
  async function answer(reply) {
    const own = /^application\/json\b/.test(reply.headers.get("content-type") ?? "");
    const told = own ? await reply.json() : {};
    if (reply.ok && own) return told;
    throw new Error(told.error?.message ?? `${answered(reply)}${own ? "" : ", in words that are not the ledger's"}`);
  }

  // When the server is gone the line on top says so by itself.
  function complain(text) {
    if (since) return;
    offline.textContent = text;
    offline.hidden = false;
  }

  document.getElementById("logout")?.addEventListener("click", async () => {
    const reply = await reached("/ui/logout", { method: "POST", headers: { "x-csrf-token": token } });
    if (reply?.ok || reply?.status === 401) location.href = base + "/ui/login";
    else complain(`${answered(reply)}: you are still logged in.`);
  });

  // Empty fields do not belong in a view's address.
  for (const form of document.querySelectorAll("form[method=get]"))
    form.addEventListener("formdata", ({ formData }) => {
      for (const [name, value] of [...formData]) if (!value) formData.delete(name);
    });

  function ago(time) {
    const at = Date.parse(time.dateTime);
    const past = (Date.now() - at) / 1000;
    if (!(past >= 0)) return time.textContent;
    if (past >= 86400) return `${new Date(at).toISOString().slice(0, 16).replace("T", " ")} UTC`;
    return past < 60 ? `${Math.floor(past)} s ago` : past < 3600 ? `${Math.floor(past / 60)} min ago` : `${Math.floor(past / 3600)} h ago`;
  }

  function inView(element) {
    const box = element.getBoundingClientRect();
    return box.bottom >= 0 && box.top <= innerHeight;
  }

  // Only what is in view, and all of it read before any is written. Groups are asked first: where
  // a row lies costs the layout of its group.
  function age() {
    const places = [...document.querySelectorAll("header, .group, :not(.group) > .events")].filter(inView);
    const times = places.flatMap((place) => [...place.querySelectorAll("time")]);
    for (const time of times.filter((time) => /ago$/.test(time.textContent) && inView(time))) {
      const text = ago(time);
      if (text !== time.textContent) time.textContent = text;
    }
  }
  setInterval(age, 10000);
  addEventListener("scrollend", age);

  // What happens meanwhile.
  const table = one("#events[data-live=yes]");
  const tree = document.getElementById("tree");
  const offline = document.getElementById("offline");
  const news = document.getElementById("news");
  const connection = document.getElementById("connection");
  const MOST = 1500;
  const EACH = 50;
  let known = Number(last);
  let missed = 0;
  let since = null;
  let timer = null;

  function joins(above, below) {
    return above?.dataset.count && below?.dataset.count && above.dataset.run === below.dataset.run;
  }

  // Rows lie in groups, each a table of its own, of which the browser lays out those in view. What a
  // run was unfolded to stays in the run's group.
  function another(group, bodies) {
    const next = group.cloneNode(false);
    const rows = one("table", group).cloneNode(false);
    rows.append(one("colgroup", group).cloneNode(true), one("thead", group).cloneNode(true), ...bodies);
    next.append(rows);
    group.after(next);
  }

  function append(bodies) {
    const groups = document.getElementById("events");
    for (let at = 0; at < bodies.length;) {
      const last = one("table", groups.lastElementChild);
      const room = Math.max(0, EACH - last.tBodies.length);
      if (room) last.append(...bodies.slice(at, at + room));
      else another(groups.lastElementChild, bodies.slice(at, at + EACH));
      at += room || EACH;
    }
  }

  function split(group) {
    const bodies = one("table", group).tBodies;
    while (bodies.length > 2 * EACH) {
      let at = bodies.length - EACH;
      while (at > 0 && bodies[at].classList.contains("inside")) at -= 1;
      if (at === 0) return;
      another(group, [...bodies].slice(at));
    }
  }

  // New rows go on top; a run that goes on stays one line.
  function add(html) {
    const bodies = [...parsed(html).querySelectorAll("tbody")];
    const top = one("tbody", table);
    const lowest = bodies.at(-1);
    let at = null;
    if (joins(lowest, top)) {
      const unfold = one(".unfold", lowest);
      if (top.contains(document.activeElement)) at = unfold;
      if (top.contains(here())) one("tr", lowest).classList.add("here");
      const count = Number(lowest.dataset.count) + Number(top.dataset.count);
      unfold.textContent = `${count.toLocaleString("en")} updates`;
      Object.assign(lowest.dataset, { first: top.dataset.first, count: String(count) });
      one(".range", lowest).textContent = `${lowest.dataset.last}–${lowest.dataset.first}`;
      unfold.href = one("tr", lowest).dataset.href = unfold.href.replace(/min_seq=\d+/, `min_seq=${lowest.dataset.first}`);
      while (top.nextElementSibling?.classList.contains("inside")) top.nextElementSibling.remove();
      top.remove();
    }
    for (const body of bodies) for (const row of body.rows) row.classList.add("fresh");
    one("thead", table).after(...bodies);
    at?.focus({ preventScroll: true });
    if (table.classList.contains("groups")) split(table.firstElementChild);
    document.querySelector("p.empty:has(+ .pages)")?.remove();
    const link = document.getElementById("older");
    const all = [...table.querySelectorAll("tbody")];
    if (scrollY < 200 && link && all.length > MOST) {
      for (const body of all.slice(MOST)) body.remove();
      for (const group of [...table.children]) if (!one("tbody", group)) group.remove();
      const oldest = all[MOST - 1];
      const url = new URL(link.href);
      url.searchParams.set("after", `event_${oldest.dataset.first ?? oldest.rows[0].dataset.seq}`);
      link.href = url;
      link.hidden = false;
    }
  }

  // Written anew, with the focus of whoever was in it with the keyboard: at what leads to the same
  // place, or stands in the same one.
  function rewrite(place, html) {
    const all = () => [...place.querySelectorAll("a, button")];
    const at = all().indexOf(document.activeElement);
    const to = all()[at]?.getAttribute("href");
    place.innerHTML = html;
    if (at < 0) return;
    const next = all().find((link) => to && link.getAttribute("href") === to) ?? all()[at] ?? all().at(-1);
    next?.focus({ preventScroll: true });
  }

  function told(message) {
    if (message.seq < known) return;
    known = message.seq;
    rewrite(document.getElementById("live"), message.header);
    if (table && message.rows) add(message.rows);
    if (tree && message.tree !== undefined) rewrite(tree, message.tree);
    if (!table && message.events) {
      missed += message.events;
      news.textContent = `${missed.toLocaleString("en")} new ${missed === 1 ? "event" : "events"}`;
      news.href = `${base}/ui/timeline?min_seq=${Number(last) + 1}`;
      news.hidden = false;
    }
    document.dispatchEvent(new CustomEvent("ledger:news", { detail: message }));
  }

  function say(text, look) {
    connection.textContent = text;
    connection.className = look;
  }

  function ended() {
    const next = encodeURIComponent(location.pathname.slice(base.length) + location.search);
    offline.textContent = "Your session has ended. What is shown is from before. ";
    const link = document.createElement("a");
    link.href = `${base}/ui/login?next=${next}`;
    link.textContent = "Log in again";
    offline.append(link);
    offline.hidden = false;
    say("○ logged out", "off");
  }

  let source = null;
  function listen() {
    const query = new URLSearchParams({ after: String(known) });
    if (table) query.set("rows", filters().toString());
    if (tree) query.set("tree", "true");
    source = new EventSource(`${base}/ui/part/live?${query}`);
    source.addEventListener("message", (event) => told(JSON.parse(event.data)));
    source.addEventListener("open", () => {
      clearTimeout(timer);
      timer = since = null;
      offline.hidden = true;
      say("● live", "on");
    });
    source.addEventListener("error", async () => {
      since ??= new Date();
      timer ??= setTimeout(() => {
        offline.textContent = `The server has not answered since ${since.toISOString().slice(11, 19)} UTC. What is shown is from then; trying again…`;
        offline.hidden = false;
        say("○ offline", "off");
      }, 1000);
      if (source.readyState !== EventSource.CLOSED) return;
      const reply = await fetch(base + "/ui/part/rows?limit=1").catch(() => null);
      if (reply?.status === 401) { clearTimeout(timer); ended(); }
      else setTimeout(listen, 2000);
    });
  }
  addEventListener("pagehide", () => source?.close());
  addEventListener("pageshow", (event) => { if (event.persisted) listen(); });
  listen();

  // What has the focus is never below the line on top, which is higher where it is narrow.
  const header = one("header");
  new ResizeObserver(() => {
    document.documentElement.style.scrollPaddingTop = `${header.offsetHeight + 12}px`;
  }).observe(header);

  return { base, token, table, filters, append, answer, fetched, parsed, ended };
})();
