#!/usr/bin/env bash
# pytest-xdist's --dist loadgroup ignores xdist_group marks under pytest 9.2
#
# Guess:    tests with @pytest.mark.xdist_group("gpu") run in one worker under --dist loadgroup, whatever
#           the version of pytest, or xdist says that it cannot.
# Seen:     under pytest 8.4 all twenty tests of a group run in one worker, under pytest 9.2 in two, without
#           a warning. xdist adds the group to a private name of each test, which pytest no longer
#           reads; each file goes to a worker of its own.
# Hurts:    groups keep tests apart that share one GPU, one port, one cluster, or a fixture of minutes: they
#           now meet, fail at times, and make the fixture in every worker.
# Versions: pytest 9.2.0 and 8.4.2, pytest-xdist 3.8.0
# Source:   xdist/remote.py, pytest_collection_modifyitems (item._nodeid);
#           https://github.com/pytest-dev/pytest-xdist
# Date:     2026-11-30
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv

cat > recorded <<'END'
pytest 8.4.2: 20 tests of one group in 1 worker
pytest 9.2.0: 20 tests of one group in 2 workers
END

cat > test_one.py <<'END'
import os
import time

import pytest


@pytest.mark.parametrize("number", range(10))
@pytest.mark.xdist_group("one")
def test_group(number):
    time.sleep(0.2)
    with open("workers", "a") as file:
        file.write(os.environ["PYTEST_XDIST_WORKER"] + "\n")
END
cp test_one.py test_two.py

for version in 8.4.2 9.2.0; do
    venv/bin/python -m pip install --quiet --disable-pip-version-check \
        "pytest==$version" pytest-xdist==3.8.0
    rm -f workers
    venv/bin/python -m pytest -q -n 2 --dist loadgroup > /dev/null
    count=$(sort -u workers | wc -l)
    [ "$count" = 1 ] && noun=worker || noun=workers
    echo "pytest $version: $(wc -l < workers) tests of one group in $count $noun"
done | tee seen

diff recorded seen && echo "as recorded"
