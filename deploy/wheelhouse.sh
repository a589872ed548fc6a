#!/usr/bin/env bash
# dlpr on nodes without internet: wheels from a connected machine.
#
#     ./wheelhouse.sh make                        # connected; in the project's root or beside it
#     rsync -a wheelhouse deploy/wheelhouse.sh CLUSTER:
#     ./wheelhouse.sh install "$HOME/dlpr"        # on the cluster: a virtual environment there
#
# Both machines need the same Python (3.11, say), the same processor family and a glibc that is not
# newer on the connected one. Where Python differs, name the cluster's: PYTHON_VERSION=3.12 makes a
# wheelhouse for it out of ready-made wheels alone.
set -euo pipefail

python=${PYTHON:-python3}
wheels=${WHEELHOUSE:-wheelhouse}
source=$(dirname "$(dirname "$(realpath "$0")")")

case ${1:-} in
make)
    mkdir -p "$wheels"
    if [[ ${PYTHON_VERSION:-} ]]; then
        "$python" -m pip wheel --no-deps --wheel-dir "$wheels" "$source"
        "$python" -m pip download --dest "$wheels" --find-links "$wheels" --only-binary=:all: \
            --python-version "$PYTHON_VERSION" --platform "manylinux_2_28_$(uname -m)" \
            --platform "manylinux2014_$(uname -m)" "$wheels"/dlpr-*.whl pip
    else
        "$python" -m pip wheel --wheel-dir "$wheels" "$source" pip
    fi
    (cd "$wheels" && sha256sum -- *.whl >SHA256SUMS)
    ;;
install)
    (cd "$wheels" && sha256sum --quiet --check SHA256SUMS)
    "$python" -m venv "${2:?where to install: a folder that all nodes see}"
    "$2/bin/pip" install --no-index --find-links "$wheels" dlpr
    "$2/bin/dlpr" --version
    ;;
*)
    sed -n '2,11s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
