import { fileURLToPath } from "node:url";
import type { NextConfig } from "next";

// This directory is the whole app, whatever lock files are further up.
const config: NextConfig = { turbopack: { root: fileURLToPath(new URL(".", import.meta.url)) }, poweredByHeader: false };

export default config;
