# lakesync as an image: the wheel and its pinned dependencies, run by a user of its own.
#
#   docker build -t lakesync .
#   docker run --rm -v "$PWD:/etc/lakesync:ro" -v lakesync:/var/lib/lakesync lakesync -c /etc/lakesync/lakesync.yaml run

FROM rust:1-slim-trixie AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3-venv \
 && python3 -m venv /opt/build
WORKDIR /src
COPY constraints.txt ./
RUN /opt/build/bin/pip install --no-cache-dir -c constraints.txt maturin
COPY pyproject.toml README.md LICENSE ./
COPY native native
COPY cdc cdc
COPY snapshot snapshot
COPY reconcile reconcile
RUN PATH="/opt/build/bin:$PATH" maturin build --release --locked --out /wheels

FROM python:3.13-slim-trixie
COPY --from=build /wheels /wheels
COPY constraints.txt /wheels/
RUN pip install --no-cache-dir -c /wheels/constraints.txt "$(echo /wheels/lakesync-*.whl)[embedded,kafka]" \
 && rm -r /wheels \
 && useradd --system --home-dir /var/lib/lakesync --create-home lakesync \
 && install -d -o lakesync -g lakesync -m 0700 /var/lib/lakesync /data/lake
USER lakesync
WORKDIR /var/lib/lakesync
VOLUME ["/var/lib/lakesync", "/data/lake"]
ENTRYPOINT ["lakesync"]
CMD ["--help"]
