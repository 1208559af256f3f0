# For those who work on deltarun; a user needs none of this.

# Everything that CI checks
ci:
    .ci/run

test:
    cargo test --release

lint:
    cargo fmt
    cargo clippy --all-targets -- -D warnings

# The quickstart's data and backbone, made anew
quickstart-assets:
    sh pipelines/quickstart/make.sh

# The fixtures of the parity tests, made anew (needs torch, transformers, peft)
fixtures:
    python tests/fixtures/make.py
