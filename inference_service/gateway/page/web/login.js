// Asks for a token and lets the browser carry it as a cookie that no script reads.

import { call } from "./api.js";
import { html, useState } from "./html.js";
import { ProblemNote } from "./notes.js";

export function LoginView({ onLogin }) {
  const [problem, setProblem] = useState(null);
  async function logIn(event) {
    event.preventDefault();
    const token = new FormData(event.currentTarget).get("token");
    try {
      await call("v1/session", { method: "POST", headers: { Authorization: `Bearer ${token}` } });
      await onLogin();
    } catch (refusal) {
      setProblem(refusal);
    }
  }
  return html`
    <main class="narrow">
      <h1>Segmentation</h1>
      <form onSubmit=${logIn}>
        <label>Token <input name="token" type="password" autocomplete="current-password" required autofocus /></label>
        <button class="primary">Log in</button>
      </form>
      ${problem && html`<${ProblemNote} problem=${problem} />`}
      <p class="hint">An operator makes a token with <code>inference-service tokens add</code>.</p>
    </main>
  `;
}
