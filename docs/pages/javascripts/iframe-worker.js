// Search on pages that are opened from the file system, where browsers start no worker: its script runs in a hidden
// frame instead. The name IFrameWorker is what the theme's search looks for.
window.IFrameWorker = class extends EventTarget {
  constructor(url) {
    super();
    const frame = document.createElement("iframe");
    frame.hidden = true;
    document.body.append(frame);
    const inner = frame.contentWindow;
    const answer = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
    inner.postMessage = answer;
    const script = inner.document.createElement("script");
    script.src = new URL(url, location.href).href;
    this.ready = new Promise((resolve) => (script.onload = () => resolve(inner)));
    inner.document.body.append(script);
  }
  postMessage(data) {
    this.ready.then((inner) => inner.dispatchEvent(new inner.MessageEvent("message", { data })));
  }
  terminate() {}
};
if (location.protocol === "file:") window.Worker = window.IFrameWorker;
