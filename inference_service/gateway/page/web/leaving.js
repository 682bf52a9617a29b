// Asks before people leave a view whose work would be lost.

let question = "";

/** @param {Event} event */
const keepTab = (event) => event.preventDefault();

/**
 * Asks a question whenever the view or the page is about to be left.
 * @param {string} text
 * @returns {() => void} Ends that.
 */
export function askBeforeLeaving(text) {
  question = text;
  addEventListener("beforeunload", keepTab);
  return () => {
    question = "";
    removeEventListener("beforeunload", keepTab);
  };
}

/** Whether the view may be left; asks the user if need be. */
export function mayLeave() {
  return question === "" || confirm(question);
}
