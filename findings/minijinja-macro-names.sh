#!/usr/bin/env bash
# minijinja 3.1.0 (Python package and Rust crate): two names that Jinja2 resolves inside a macro are undefined.
#
# 1. A default that refers to an earlier argument, `{% macro turn(role, name=role) %}`. Jinja2 gives the earlier
#    argument; minijinja looks the name up outside of the macro and, where there is none, renders nothing. That
#    is silent with the usual lenient undefined. If a name outside happens to match, its value is taken.
# 2. A namespace from outside that the macro only assigns to, `{% set count.value = 1 %}`. minijinja captures the
#    names that a macro reads, but the target of such a `set` does not count as read: an error that `count` is
#    undefined. With `{% set count.value = count.value + 1 %}`, or any mention of `count`, it works.
#
# Affected: chat templates with macros, written and tested for transformers (Jinja2), when a Rust server or
# trainer renders them with minijinja. Expected: Jinja2's result. minijinja's COMPATIBILITY.md
# lists its differences; for macros it names `varargs` and `kwargs` only, and for `set` "feature parity".
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q minijinja==3.1.0 jinja2==3.1.6
cat > "$dir/check.py" <<'EOF'
from importlib.metadata import version

import jinja2
import minijinja

print({name: version(name) for name in ("jinja2", "minijinja")})
EARLIER = "{% macro turn(role, name=role) %}<{{ role }}|{{ name }}>{% endmacro %}{{ turn('user') }}"
ASSIGN = ("{% set last = namespace(role='') %}{% macro turn(role) %}{% set last.role = role %}<{{ role }}>{% endmacro %}"
          "{{ turn('user') }}{{ last.role }}")
# template, names given to it, Jinja2's result, minijinja's
cases = [
    (EARLIER, {}, "<user|user>", "<user|>"),
    (EARLIER, {"role": "outside"}, "<user|user>", "<user|outside>"),
    (ASSIGN, {}, "<user>user", None),
    (ASSIGN.replace("= role %}", "= last.role ~ role %}"), {}, "<user>user", "<user>user"),
]
for template, names, want, other in cases:
    jinja = jinja2.Environment().from_string(template).render(**names)
    try:
        mini = minijinja.Environment().render_str(template, **names)
    except minijinja.TemplateError as error:
        mini = None
        print("error:", str(error).splitlines()[0])
    print(f"{template}\n    with {names}: jinja2 {jinja!r}, minijinja {mini!r}")
    assert jinja == want and mini == other, "changed"
EOF
"$dir/venv/bin/python" "$dir/check.py"

mkdir "$dir/src"
cat > "$dir/Cargo.toml" <<'EOF'
[package]
name = "names"
version = "0.0.0"
edition = "2021"
[dependencies]
minijinja = "=3.1.0"
EOF
cat > "$dir/src/main.rs" <<'EOF'
fn main() {
    let environment = minijinja::Environment::new();
    let earlier = "{% macro turn(role, name=role) %}<{{ role }}|{{ name }}>{% endmacro %}{{ turn('user') }}";
    println!("{}", environment.render_str(earlier, ()).unwrap());
    let assign = "{% set last = namespace(role='') %}{% macro turn(role) %}{% set last.role = role %}{% endmacro %}\
                  {{ turn('user') }}{{ last.role }}";
    match environment.render_str(assign, ()) {
        Ok(text) => println!("{text}"),
        Err(error) => println!("error: {error}"),
    }
}
EOF
mapfile -t lines < <(cd "$dir" && CARGO_TARGET_DIR="$dir/target" cargo run -q)
printf 'crate: %s\n' "${lines[@]}"
[[ ${lines[0]-} == "<user|>" && ${lines[1]-} == error:*undefined* ]] || { echo "changed"; exit 1; }
echo "still so: the two names are undefined in minijinja"
