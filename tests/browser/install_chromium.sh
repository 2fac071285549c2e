#!/usr/bin/env bash
# Makes sure that there is a Chromium for the browser tests: takes one that is installed, else installs it with apt as root,
# else says what to install. It never stops the other tests: without a browser the browser tests fail, and say so.
set -u

for name in chromium chromium-browser google-chrome; do
  if command -v "$name" >/dev/null; then exit 0; fi
done

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "Installing Chromium for the browser tests..."
  if { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium; } >/dev/null 2>&1 \
    && command -v chromium >/dev/null; then
    exit 0
  fi
  echo "Chromium could not be installed with apt-get; install chromium or google-chrome: without it the browser tests fail" >&2
  exit 0
fi

echo "No Chromium found; install chromium or google-chrome (Debian: apt-get install chromium): without it the browser tests fail" >&2
