import { defineConfig } from "vite";

export default defineConfig({
  base: "./", // relative addresses, so that the folder may lie anywhere on a host
  worker: { format: "es" },
  build: { target: "es2022", assetsInlineLimit: 0, modulePreload: { polyfill: false } },
});
