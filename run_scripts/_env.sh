# Sourced by the other scripts: makes or reuses the virtual environment and installs the package.
#   LAVISLITE_VENV   where the environment lives   (default: .venv in the checkout)
#   PYTHON           which Python makes it         (default: python3; 3.10 or newer)

cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV="${LAVISLITE_VENV:-$PWD/.venv}"
PYTHON="${PYTHON:-python3}"

say() { printf '\033[1m%s\033[0m\n' "$*"; }

# install_package EXTRAS   e.g. install_package "" or install_package "[test]"
install_package() {
  local extras="$1" stamp
  if [ ! -x "$VENV/bin/python" ]; then
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
      echo "error: $("$PYTHON" --version 2>&1) is too old; set PYTHON to a Python 3.10 or newer." >&2
      exit 2
    }
    say "Making a virtual environment in $VENV"
    "$PYTHON" -m venv "$VENV"
  fi
  # The stamp names what is installed; it changes when the requirements do.
  stamp="$VENV/.lavislite-$(cat setup.py constraints.txt | cksum | cut -d' ' -f1)${extras//[\[\]]/-}"
  if [ ! -f "$stamp" ] || ! (cd / && "$VENV/bin/python" -c 'import lavislite' 2>/dev/null); then
    say "Installing lavislite$extras"
    if command -v uv >/dev/null 2>&1; then
      uv pip install --quiet --python "$VENV/bin/python" -c constraints.txt -e ".$extras"
    elif "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check uv; then
      "$VENV/bin/python" -m uv pip install --quiet --python "$VENV/bin/python" -c constraints.txt -e ".$extras"
    else
      "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".$extras"
    fi
    touch "$stamp"
  fi
}
