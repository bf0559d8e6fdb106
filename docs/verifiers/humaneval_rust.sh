#!/bin/sh
# Verifies an answer to a HumanEvalPack row (Rust): builds declaration, answer and tests as one program, and runs the tests.
#   retune ... --verifier 'sh humaneval_rust.sh'
# Needs rustc in PATH, no crates. Exit 0: all tests pass; 1: they do not, or it does not compile; 125: cannot be judged here.

command -v rustc > /dev/null || { echo "rustc is not in PATH"; exit 125; }
if grep -Eq '(^|[^A-Za-z0-9_])(rand|regex|md5)::' fields/test; then
    echo "the row's own tests need a crate (rand, regex or md5), and there is none here"
    exit 125
fi

# The first block in ``` fences, or all of it where there is none.
awk '/^[ \t]*```/ { if (inside) exit; inside = 1; next } inside' answer.txt > code.rs
[ -s code.rs ] || cp answer.txt code.rs

# The answer may be the body that follows the declaration, or the function as a whole: then only what stands before it is taken.
entry=$(cat fields/entry_point)
if grep -Eq "fn +$entry *[(<]" code.rs; then
    sed -E "/fn +$entry *[(<]/,\$d" fields/declaration > before.rs
else
    cp fields/declaration before.rs
fi

# Every row imports these crates; nearly none uses them.
{
    echo '#![allow(warnings)]'
    cat before.rs code.rs fields/test | sed -E '/^[ \t]*use (rand|regex|md5)(::.*)?;/d'
} > program.rs
rustc --test --edition 2021 -C opt-level=0 -C debuginfo=0 --color never -o tests program.rs || exit 1

./tests --test-threads 1 --color never > result.txt 2>&1
code=$?
tail -n 20 result.txt
# An answer that ends the program by itself, with exit code 0, has passed nothing.
[ $code -eq 0 ] && grep -Eq '^test result: ok\. [1-9]' result.txt || exit 1
