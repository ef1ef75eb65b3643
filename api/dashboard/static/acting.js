// Forms that change something: sent to the REST API with the page's token, told in the form.
"use strict";
(() => {
  const { token } = document.body.dataset;

  // Somebody was faster: what they did stands in the form, so that one can decide anew.
  async function changed(form, out) {
    const page = await Dashboard.fetched(`/ui/part/rows?flat=true&limit=10&min_seq=${Number(form.dataset.last) + 1}`);
    out.textContent = "Somebody else changed the model meanwhile, so nothing was done. ";
    const link = document.createElement("a");
    link.href = location.href;
    link.textContent = "Look at it as it is now";
    out.append(link, ". What happened:");
    const table = page?.querySelector("table");
    if (!table) return;
    table.className = "events";
    out.append(table);
  }

  async function send(form, out) {
    const headers = { "content-type": "application/json", "x-csrf-token": token };
    const body = JSON.parse(form.dataset.body || "{}");
    for (const field of form.elements) {
      if (field.dataset.header) headers[field.dataset.header] = encodeURIComponent(field.value);
      else if (field.name) body[field.name] = field.value;
    }
    if (form.dataset.ifMatch) headers["if-match"] = `"${form.dataset.ifMatch}"`;
    const empty = !Object.keys(body).length;
    if (empty) delete headers["content-type"];
    const reply = await fetch(form.dataset.path, { method: "POST", headers, body: empty ? undefined : JSON.stringify(body) });
    if (reply.status === 412) { await changed(form, out); return null; }
    if (reply.status === 401) Dashboard.ended();
    return Dashboard.answer(reply);
  }

  function shown(told, field) {
    if (field === "key") return `Its secret, shown this once: ${told.key}`;
    if (field === "tensors") return `● ${told.tensors} tensors are those of event ${told.seq}, bit for bit`;
    if (field === "digest") return `The live state would have the digest ${told.digest}`;
    return told.message ?? "done";
  }

  for (const form of document.querySelectorAll("form.act"))
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      if (form.dataset.ask && !confirm(form.dataset.ask)) return;
      const out = form.querySelector("output");
      const buttons = form.querySelectorAll("button");
      out.className = "";
      out.textContent = "…";
      for (const button of buttons) button.disabled = true;
      let done = false; // a second click while the next page is on its way would do it again
      try {
        const told = await send(form, out);
        if (told === null) { out.className = "failed"; return; }
        if (told.data?.approval_id ?? told.approval_id) out.textContent = "It waits for a second person now.";
        else {
          out.textContent = shown(told, form.dataset.show);
          done = Boolean(form.dataset.done);
          if (done) location.href = form.dataset.done;
        }
      } catch (error) {
        out.className = "failed";
        out.textContent = error instanceof TypeError ? "The server does not answer; nothing is known to be done." : error.message;
      } finally {
        for (const button of buttons) button.disabled = done;
      }
    });

  // Whoever comes back to this page finds forms that can be sent.
  addEventListener("pageshow", (event) => {
    if (!event.persisted) return;
    for (const form of document.querySelectorAll("form.act")) {
      form.querySelector("output").textContent = "";
      for (const button of form.querySelectorAll("button")) button.disabled = false;
    }
  });

  // What passes some filters, as a file that is put together here.
  const MOST = 10000;
  const COLUMNS = ["seq", "id", "kind", "recorded_at", "actor", "reason", "state_before", "state_after", "event_hash"];
  const cell = (value) => {
    const text = String(value ?? "");
    return `"${(/^[=+\-@\t\r]/.test(text) ? "'" : "") + text.replaceAll('"', '""')}"`;
  };
  const forms = {
    jsonl: (items) => items.map((item) => JSON.stringify(item) + "\n").join(""),
    csv: (items) => [COLUMNS.join(","), ...items.map((item) => COLUMNS.map((name) => cell(item[name])).join(","))].join("\r\n") + "\r\n",
  };
  document.getElementById("export")?.addEventListener("submit", async (event) => {
    event.preventDefault();
    const form = event.target;
    const out = form.querySelector("output");
    const query = new URLSearchParams([...new FormData(form)].filter(([, value]) => value));
    query.set("limit", "100");
    const items = [];
    try {
      let more = true;
      while (more && items.length < MOST) {
        const page = await Dashboard.answer(await fetch(`${form.dataset.path}?${query}`));
        items.push(...page.data);
        more = page.has_more;
        query.set("after", page.last_id);
        out.textContent = `${items.length} events…`;
      }
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([forms[event.submitter.value](items)]));
      link.download = `events.${event.submitter.value}`;
      link.click();
      URL.revokeObjectURL(link.href);
      out.className = "";
      out.textContent = `${items.length} events` + (more ? `, the newest; all of them: weightledger log -n 0 --${event.submitter.value === "csv" ? "csv" : "json"}` : "");
    } catch (error) {
      out.className = "failed";
      out.textContent = error instanceof TypeError ? "The server does not answer." : error.message;
    }
  });
})();
