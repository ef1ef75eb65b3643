// Shows an API key once; the server answers with a cookie that no script can read.
"use strict";
document.getElementById("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target;
  const out = form.querySelector("output");
  try {
    const reply = await fetch(form.dataset.path, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ key: form.elements.key.value }),
    });
    if (reply.ok) { location.href = form.dataset.done; return; }
    const own = /^application\/json\b/.test(reply.headers.get("content-type") ?? "");
    out.textContent = own ? (await reply.json()).error.message : `The server answered ${reply.status}, in words that are not the ledger's`;
  } catch (error) {
    out.textContent = "The server does not answer";
  }
  out.className = "failed";
});
