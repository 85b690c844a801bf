/* Signs in with the token of the address that `har app` prints; the part after # is never sent to a server, nor logged by one. */

"use strict";

(() => {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!token) return;
  history.replaceState(null, "", location.pathname);
  document.getElementById("token").value = token;
  document.getElementById("sign-in").requestSubmit();
})();
