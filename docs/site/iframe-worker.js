// How does search work on pages opened from a folder? Browsers refuse workers there, so its script runs in a hidden frame of the page.
// The offline plugin would fetch such a replacement from elsewhere; it takes this file for its own by the name.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      this.ready = new Promise((resolve) => {
        addEventListener("DOMContentLoaded", resolve, { once: true });
        if (document.readyState !== "loading") resolve();
      }).then(() => {
        document.body.append(frame);
        this.scope = frame.contentWindow;
        this.scope.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
        return new Promise((resolve) => {
          const script = this.scope.document.createElement("script");
          script.src = url;
          script.onload = resolve;
          this.scope.document.head.append(script);
        });
      });
    }

    postMessage(data) {
      this.ready.then(() => this.scope.dispatchEvent(new MessageEvent("message", { data })));
    }
  };
}
