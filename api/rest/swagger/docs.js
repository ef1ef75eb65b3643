// Shows the server's own document. Where a key is wanted, asks for it and sends it with each request.
"use strict";

const KEPT = "weightledger-api-key";
const door = document.getElementById("door");
const field = document.getElementById("key");
const refusal = document.getElementById("refusal");

function headers(key) {
  return key ? { authorization: `Bearer ${key}` } : {};
}

function show(spec, key) {
  door.hidden = true;
  const ui = SwaggerUIBundle({
    spec,
    dom_id: "#swagger-ui",
    deepLinking: true,
    validatorUrl: "none",
    persistAuthorization: false,
    onComplete: () => key && ui.preauthorizeApiKey("ApiKey", key),
  });
}

async function open(key) {
  const reply = await fetch("openapi.json", { headers: headers(key) });
  if (reply.ok) {
    if (key) sessionStorage.setItem(KEPT, key);
    show(await reply.json(), key);
    return;
  }
  sessionStorage.removeItem(KEPT);
  const body = await reply.json().catch(() => null);
  refusal.textContent = key || reply.status !== 401 ? body?.error?.message ?? reply.statusText : "";
  door.hidden = false;
  field.focus();
}

door.addEventListener("submit", (event) => {
  event.preventDefault();
  open(field.value.trim());
});

open(sessionStorage.getItem(KEPT));
