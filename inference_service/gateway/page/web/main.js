// The frame of the page: who uses it, which view is shown, and the links between them.

import { call, callJson, Problem } from "./api.js";
import { html, render, useEffect, useState } from "./html.js";
import { JobView } from "./job.js";
import { JobsView } from "./jobs.js";
import { mayLeave } from "./leaving.js";
import { LoginView } from "./login.js";
import { ModelsView } from "./models.js";
import { NewJobView } from "./new_job.js";
import { ProblemNote } from "./notes.js";

const TITLES = { jobs: "Jobs", new: "New job", job: "Job", models: "Models" };

/** The view and the job that the address names, as in #/jobs/ID. */
function currentRoute() {
  const [view, id] = location.hash.replace(/^#\/?/, "").split("/");
  if (view === "jobs" && id) return { view: "job", id };
  return { view: view in TITLES ? view : "jobs", id: "" };
}

function useRoute() {
  const [route, setRoute] = useState(currentRoute);
  useEffect(() => {
    let shown = location.hash;
    const follow = () => {
      if (location.hash === shown) return;
      if (mayLeave()) {
        shown = location.hash;
        setRoute(currentRoute());
      } else {
        location.hash = shown;
      }
    };
    addEventListener("hashchange", follow);
    return () => removeEventListener("hashchange", follow);
  }, []);
  return route;
}

// The tabs of a browser share its session.
const otherTabs = new BroadcastChannel("session");

function useSession() {
  const [state, setState] = useState({ session: null, problem: null, loading: true });
  async function load() {
    try {
      setState({ session: await callJson("v1/session"), problem: null, loading: false });
    } catch (problem) {
      setState({ session: null, problem, loading: false });
    }
  }
  async function change() {
    otherTabs.postMessage("changed");
    await load();
  }
  useEffect(() => {
    load();
    otherTabs.onmessage = load;
    // A token may be removed while the page is open.
    addEventListener("unauthenticated", load);
    return () => removeEventListener("unauthenticated", load);
  }, []);
  return { ...state, reload: load, change };
}

function Navigation({ route, session, onLogout }) {
  const link = (view, hash, text) =>
    html`<a href=${hash} aria-current=${route.view === view ? "page" : undefined}>${text}</a>`;
  return html`
    <header class="bar">
      <a class="skip" href="#content" onClick=${skipToContent}>Skip to the content</a>
      <nav aria-label="Views">
        ${link("jobs", "#/jobs", "Jobs")}
        ${session.role !== "read" && link("new", "#/new", "New job")}
        ${link("models", "#/models", "Models")}
      </nav>
      ${
        session.needs_token &&
        html`<span class="who">${session.name} (${session.role}) <button class="plain" onClick=${onLogout}>Log out</button></span>`
      }
    </header>
  `;
}

/** @param {Event} event */
function skipToContent(event) {
  event.preventDefault();
  document.getElementById("content")?.focus();
}

function View({ route, session }) {
  switch (route.view) {
    case "new":
      if (session.role === "read") return html`<p class="empty">A token of the role read cannot submit jobs.</p>`;
      return html`<${NewJobView} session=${session} />`;
    case "job":
      return html`<${JobView} key=${route.id} id=${route.id} session=${session} />`;
    case "models":
      return html`<${ModelsView} />`;
    default:
      return html`<${JobsView} session=${session} />`;
  }
}

function Page() {
  const route = useRoute();
  const { session, problem, loading, reload, change } = useSession();
  useEffect(() => {
    document.title = `${TITLES[route.view]} – Segmentation`;
  }, [route.view]);
  useEffect(() => {
    // The element that had the focus may be gone with its view.
    const skip = () => document.getElementById("content")?.focus({ preventScroll: true });
    addEventListener("hashchange", skip);
    return () => removeEventListener("hashchange", skip);
  }, []);
  async function logOut() {
    if (!mayLeave()) return;
    await call("v1/session", { method: "DELETE" }).catch(() => {});
    await change();
  }
  if (loading) return html`<main class="narrow"><p>Loading …</p></main>`;
  if (problem instanceof Problem && problem.status === 401) return html`<${LoginView} onLogin=${change} />`;
  if (problem) {
    return html`<main class="narrow">
      <${ProblemNote} problem=${problem} /><button onClick=${reload}>Try again</button>
    </main>`;
  }
  return html`
    <${Navigation} route=${route} session=${session} onLogout=${logOut} />
    <main id="content" tabindex="-1" key=${`${session.name} ${session.role}`}><${View} route=${route} session=${session} /></main>
    <footer>
      <span>Version ${session.version}. Not for clinical use.</span>
      <a href="v1/openapi.json">API</a>
      <a href="page/vendor/LICENCES.txt">Licences of this page</a>
    </footer>
  `;
}

// A file that is dropped beside its place must not replace the page.
for (const kind of ["dragover", "drop"]) addEventListener(kind, (event) => event.preventDefault());

render(html`<${Page} />`, document.body);
