// Values that are asked for again and again while the page is seen.

import { useEffect, useState } from "./html.js";

/**
 * Loads a value, and loads it again after each period.
 * @param {() => Promise<any>} load
 * @param {unknown[]} inputs What `load` depends on: a change loads at once.
 * @param {number} periodMs
 * @returns {{value: any, problem: any, refresh: () => void}} The last value, and the problem of the last call.
 */
export function usePolled(load, inputs, periodMs) {
  const [state, setState] = useState({ value: null, problem: null });
  const [round, setRound] = useState(0);
  useEffect(() => {
    let stopped = false;
    let timer = 0;
    let loading = false;
    async function look() {
      clearTimeout(timer);
      // The call on its way sets the timer when it ends; a hidden page waits to be seen.
      if (loading || document.hidden) return;
      loading = true;
      try {
        const value = await load();
        if (!stopped) setState({ value, problem: null });
      } catch (problem) {
        if (!stopped) setState((last) => ({ ...last, problem }));
      }
      loading = false;
      if (!stopped) timer = setTimeout(look, periodMs);
    }
    look();
    document.addEventListener("visibilitychange", look);
    return () => {
      stopped = true;
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", look);
    };
  }, [...inputs, round]);
  return { ...state, refresh: () => setRound((last) => last + 1) };
}
