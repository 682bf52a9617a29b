// The one place that knows the library by which the views are written. It shows all values as text, never as HTML.
export { html, render, useEffect, useRef, useState } from "./vendor/preact.js";
