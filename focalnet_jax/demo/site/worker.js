// What runs beside the page, so that it can be used while the model computes.
//
// A page that is opened as a file may load scripts, and neither other files nor workers. So
// the page makes a worker of the text of this function.
"use strict";

function work() {
  let ort, session;

  const tasks = {
    async load({ script, wasm, model }) {
      const module = new Blob([script], { type: "text/javascript" });
      ort = await import(URL.createObjectURL(module));
      // Threads need headers that neither files nor simple servers send.
      ort.env.wasm.numThreads = 1;
      ort.env.wasm.wasmBinary = wasm;
      session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
    },

    // Returns the time in milliseconds, and each result by its name.
    async run({ values, shape }) {
      const images = new ort.Tensor("float32", values, shape);
      const start = performance.now();
      const results = await session.run({ images });
      const milliseconds = performance.now() - start;
      const arrays = Object.entries(results).map(([name, { data, dims }]) =>
        [name, { data, dims }]);
      return { milliseconds, results: Object.fromEntries(arrays) };
    },
  };

  self.onmessage = async ({ data: { number, task, options } }) => {
    try {
      self.postMessage({ number, answer: await tasks[task](options) });
    } catch (error) {
      self.postMessage({ number, problem: String(error?.message ?? error) });
    }
  };
}
