//! What selectors choose, in every form that the language has.

use crate::common::fixture;
use deltarun::plan::{Change, Plan};

fn plan(backbone: &str, statements: &str) -> Plan {
    let text = format!(
        r#"
        param two = 2
        backbone "{backbone}"
        data {{ train = tsv("train.tsv") }}
        task classify {{ text = a, label = b, labels = [x, y] }}
        {statements}
        stage tune {{ train = [delta], steps = two, optimizer = sgd {{ lr = 1 }} }}
        "#
    );
    crate::common::plan_of(&text, &fixture(""))
}

fn sites(backbone: &str, selection: &str) -> Vec<String> {
    let plan = plan(
        backbone,
        &format!("reparam delta = lora {{ rank = 1 }} on {selection}"),
    );
    match &plan.deltas[0].change {
        Change::Method { sites, .. } => sites.clone(),
        Change::Unfreeze { .. } => unreachable!("the statement is a reparam"),
    }
}

fn parameters(backbone: &str, selection: &str) -> Vec<String> {
    match plan(backbone, &format!("unfreeze delta = {selection}"))
        .deltas
        .remove(0)
        .change
    {
        Change::Unfreeze { parameters } => parameters,
        Change::Method { .. } => unreachable!("the statement is an unfreeze"),
    }
}

#[test]
fn modules() {
    let cases: &[(&str, &[&str])] = &[
        ("block.0.attn.q", &["block.0.attn.q"]),
        (
            "block.*.attn.q expect 3",
            &["block.0.attn.q", "block.1.attn.q", "block.2.attn.q"],
        ),
        ("block.1.attn.{q,v}", &["block.1.attn.q", "block.1.attn.v"]),
        (
            "block.2.{attn.o,ff.{up,down}}",
            &["block.2.attn.o", "block.2.ff.up", "block.2.ff.down"],
        ),
        ("block[1].attn.q", &["block.1.attn.q"]),
        ("block[0..2].attn.q", &["block.0.attn.q", "block.1.attn.q"]),
        (
            "block[last 2].attn.q",
            &["block.1.attn.q", "block.2.attn.q"],
        ),
        (
            "block[last two].attn.q",
            &["block.1.attn.q", "block.2.attn.q"],
        ),
        (
            "**.q",
            &["block.0.attn.q", "block.1.attn.q", "block.2.attn.q"],
        ),
        (
            "**.up except block.1.** expect two",
            &["block.0.ff.up", "block.2.ff.up"],
        ),
        ("pooler", &["pooler"]),
        (
            "\"encoder.layer.1.attention.self.query\"",
            &["block.1.attn.q"],
        ),
        (
            "\"bert.encoder.layer.*.output.dense\"",
            &["block.0.ff.down", "block.1.ff.down", "block.2.ff.down"],
        ),
    ];
    for (selection, expected) in cases {
        assert_eq!(sites("bert_b", selection), *expected, "{selection}");
    }
}

#[test]
fn random_modules_are_drawn_from_the_seed() {
    let draw = || sites("bert_b", "random 4 of block.*.*.{q,k,v,o}");
    assert_eq!(draw().len(), 4);
    assert_eq!(draw(), draw());
}

#[test]
fn fused_modules_are_matched_by_their_own_names_only() {
    assert_eq!(sites("gpt2", "block.0.attn.{q,k,v,o}").len(), 4);
    assert_eq!(sites("gpt2", "\"h.0.attn.c_attn\""), ["block.0.attn.qkv"]);
    assert_eq!(
        sites("gpt2", "block.*.attn.* except block.*.attn.norm").len(),
        8
    );
}

#[test]
fn parameters_of_modules_and_by_name() {
    assert_eq!(
        parameters("bert_b", "block.0.attn.norm"),
        ["block.0.attn.norm.weight", "block.0.attn.norm.bias"]
    );
    assert_eq!(
        parameters("bert_b", "block.0.{attn.q,ff.up}.bias"),
        ["block.0.attn.q.bias", "block.0.ff.up.bias"]
    );
    assert_eq!(
        parameters("bert_b", "\"encoder.layer.0.attention.self.key.bias\""),
        ["block.0.attn.k.bias"]
    );
    assert_eq!(parameters("gpt2", "\"h.1.attn.c_attn.bias\"").len(), 3);
    let all = parameters("bert_b", "**");
    assert_eq!(
        parameters("bert_b", "** except embeddings").len(),
        all.len() - 5
    );
}

#[test]
fn freeze_takes_back_what_was_unfrozen_before_it() {
    let plan = plan(
        "bert_b",
        "unfreeze delta = block.0.attn.**\nfreeze **.weight",
    );
    let Change::Unfreeze { parameters } = &plan.deltas[0].change else {
        unreachable!()
    };
    assert_eq!(parameters.len(), 5);
    assert!(parameters.iter().all(|path| path.ends_with(".bias")));
}

/// An encoder and a decoder have a tree each, and a decoder's cross attention has a name of its own.
#[test]
fn an_encoder_and_a_decoder_are_chosen_apart_or_together() {
    let of = sites;
    let sites = |selection: &str| of("t5_v1_1", selection);
    assert_eq!(sites("encoder.block.*.attn.q").len(), 2);
    assert_eq!(sites("**.attn.{q,v}").len(), 8);
    // What PEFT's `target_modules=["q", "v"]` chooses.
    assert_eq!(sites("**.{attn,cross}.{q,v}").len(), 12);
    assert_eq!(
        sites("decoder.block[last 1].{cross.k,ff.gate}"),
        ["decoder.block.1.cross.k", "decoder.block.1.ff.gate"]
    );
    assert_eq!(
        sites("\"decoder.block.*.layer.1.EncDecAttention.o\""),
        ["decoder.block.0.cross.o", "decoder.block.1.cross.o"]
    );
    assert_eq!(parameters("t5_v1_1", "**.position").len(), 2);
    // Of each stack its own last ones: this one has 2 and 3 blocks.
    let last = ["encoder.block.1.attn.q", "decoder.block.2.attn.q"];
    for selection in ["**.block[last 1].attn.q", "*.block[last 1].attn.q"] {
        assert_eq!(of("t5_v1_0", selection), last);
    }
    let last = ["decoder.block.2.attn.q"];
    for selection in [
        "decoder.block[last 1].attn.q",
        "decoder.**.block[last 1].attn.q",
    ] {
        assert_eq!(of("t5_v1_0", selection), last);
    }
    let plain = sites("**.block[0].ff.up");
    assert_eq!(plain, ["encoder.block.0.ff.up", "decoder.block.0.ff.up"]);
}

/// The end of a checkpoint's name is enough, as in PEFT's `target_modules`.
#[test]
fn quoted_ends_of_names_select_what_target_modules_do() {
    assert_eq!(
        sites("llama_a", "\"q_proj\""),
        sites("llama_a", "**.attn.q")
    );
    assert_eq!(
        sites("llama_a", "{\"q_proj\", \"v_proj\"}"),
        sites("llama_a", "**.attn.{q,v}")
    );
    assert_eq!(sites("bert_a", "\"*.query\""), sites("bert_a", "**.attn.q"));
    assert_eq!(
        sites("bert_a", "{ \"query\", \"attention.output.dense\" }"),
        sites("bert_a", "**.attn.{q,o}")
    );
    assert_eq!(sites("gpt2", "\"c_attn\""), sites("gpt2", "**.attn.qkv"));
}

/// Names of PEFT and of checkpoints get their names here, and what is written instead selects what was meant: the same
/// blocks, all alternatives, and no others.
#[test]
fn names_of_checkpoints_are_translated() {
    for (backbone, written, ours) in [
        ("llama_a", "**.q_proj", "**.attn.q"),
        ("llama_a", "{q_proj,v_proj}", "**.attn.{q,v}"),
        ("llama_a", "block.*.mlp.down_proj", "**.ff.down"),
        ("llama_a", "**.query", "**.attn.q"),
        ("llama_a", "**.c_attn", "**.attn.{q,k,v}"),
        ("llama_a", "**.self_attn.v_proj", "**.attn.v"),
        (
            "llama_a",
            "model.layers.1.mlp.{up_proj,down_proj}",
            "block.1.ff.{up,down}",
        ),
        ("llama_a", "block.0.attn.q_proj", "block.0.attn.q"),
        (
            "llama_a",
            "block[last 1].attn.{q_proj,v}",
            "block.1.attn.{q,v}",
        ),
        ("llama_a", "\"query\"", "**.attn.q"),
        ("bert_a", "**.q_proj", "**.attn.q"),
        ("bert_a", "{query,value}", "**.attn.{q,v}"),
        ("bert_a", "pooler.dense", "pooler"),
        ("bert_a", "**.intermediate.dense", "**.ff.up"),
        ("bert_a", "**.output.dense", "**.{attn.o,ff.down}"),
        (
            "bert_a",
            "encoder.layer.1.attention.self.query",
            "block.1.attn.q",
        ),
        (
            "bert_a",
            "encoder.layer[0..1].attention.self.key",
            "block.0.attn.k",
        ),
        ("gpt2", "**.c_fc", "**.ff.up"),
        ("gpt2", "**.c_attn", "**.attn.qkv"),
        ("t5_v1_0", "**.SelfAttention.{q,v}", "**.attn.{q,v}"),
        ("t5_v1_0", "**.layer.0.SelfAttention.q", "**.attn.q"),
        (
            "t5_v1_0",
            "encoder.block.*.layer.0.SelfAttention.q",
            "encoder.block.*.attn.q",
        ),
        ("t5_v1_0", "**.EncDecAttention.v", "**.cross.v"),
        (
            "t5_v1_0",
            "encoder.block.*.DenseReluDense.wo",
            "encoder.block.*.ff.down",
        ),
    ] {
        let help = hint(backbone, written);
        assert!(
            help.ends_with(&format!("write `{ours}`")),
            "{backbone}, {written}: {help}"
        );
        assert!(!sites(backbone, ours).is_empty(), "{ours}");
    }
    let part = hint("llama_a", "**.self_attn");
    assert!(part.ends_with("write `**.attn`"), "{part}");
    let norm = hint("t5_v1_0", "encoder.final_layer_norm");
    assert!(norm.ends_with("write `encoder.norm`"), "{norm}");
    let weight = hint("llama_a", "block.*.attn.q.weight");
    assert!(weight.ends_with("write `block.*.attn.q`"), "{weight}");
    let biases = hint("bert_a", "**.biases");
    assert!(biases.contains("**.bias"), "{biases}");
    assert_eq!(
        hint("bert_a", "\"all-linear\""),
        hint("bert_a", "all_linear")
    );
    let all = hint("llama_a", "all_linear");
    assert!(
        all.contains("`**.block.*.{attn.{q,k,v,o},ff.{gate,up,down}}`"),
        "{all}"
    );
    assert_eq!(
        sites("llama_a", "**.block.*.{attn.{q,k,v,o},ff.{gate,up,down}}").len(),
        7 * 2
    );
}

/// The way out that a selector without a match gets.
fn hint(backbone: &str, selection: &str) -> String {
    let text = format!(
        r#"
        backbone "{backbone}"
        data {{ train = tsv("train.tsv") }}
        task classify {{ text = a, label = b, labels = [x, y] }}
        reparam delta = lora {{ rank = 1 }} on {selection}
        stage tune {{ train = [delta], steps = 1, optimizer = sgd {{ lr = 1 }} }}
        "#
    );
    let problems = crate::common::planned(&text, &fixture("")).unwrap_err();
    let found = problems
        .into_iter()
        .find(|problem| problem.code == "delta::plan::no_match");
    found
        .unwrap_or_else(|| panic!("{selection} has another problem"))
        .help
        .unwrap()
}
