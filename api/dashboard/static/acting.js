// Forms that change something: sent to the REST API with the page's token, told in the form.
"use strict";
(() => {
  const { token } = document.body.dataset;

  async function send(form) {
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
    const told = await reply.json();
    if (reply.status === 412) throw new Error("Somebody else changed the model meanwhile. Nothing was done: load this page again and look.");
    if (!reply.ok) throw new Error(told.error?.message ?? `the server answered ${reply.status}`);
    return told;
  }

  for (const form of document.querySelectorAll("form.act"))
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const out = form.querySelector("output");
      const buttons = form.querySelectorAll("button");
      out.className = "";
      out.textContent = "…";
      for (const button of buttons) button.disabled = true;
      try {
        const told = await send(form);
        out.textContent = form.dataset.show ? JSON.stringify(told, null, 1) : told.message ?? "done";
        if (form.dataset.done) location.href = form.dataset.done;
      } catch (error) {
        out.className = "failed";
        out.textContent = error.message;
      } finally {
        for (const button of buttons) button.disabled = false;
      }
    });
})();
