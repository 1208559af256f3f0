//! A `.delta` file as it was written: every node with its place, nothing resolved.

use crate::diagnostic::Span;

/// A node and its place in the source. Two nodes are equal if they say the same, wherever they stand.
#[derive(Clone, Debug)]
pub struct Spanned<T> {
    /// The node.
    pub node: T,
    /// Its place.
    pub span: Span,
}

impl<T> Spanned<T> {
    /// A node at a place.
    pub fn new(node: T, span: Span) -> Self {
        Spanned { node, span }
    }
}

impl<T: PartialEq> PartialEq for Spanned<T> {
    fn eq(&self, other: &Self) -> bool {
        self.node == other.node
    }
}

/// A name with its place.
pub type Name = Spanned<String>;

/// A whole file.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Pipeline {
    /// In the order of the file.
    pub statements: Vec<Spanned<Statement>>,
}

/// A statement.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Statement {
    /// `pipeline sst2`
    Pipeline { name: Name },
    /// `param rank = 8`
    Param { name: Name, value: Spanned<Value> },
    /// `backbone "models/minilm" { max_length = 128 }`
    Backbone {
        location: Spanned<Value>,
        block: Option<Block>,
    },
    /// `data { train = tsv("train.tsv") }`, or `data corpus { … }`
    Data { name: Option<Name>, block: Block },
    /// `task classify { … }`, or `task topic = classify { … }`
    Task {
        name: Option<Name>,
        kind: Name,
        block: Block,
    },
    /// `freeze **`
    Freeze { selection: Selection },
    /// `unfreeze biases = **.bias`
    Unfreeze {
        name: Name,
        selection: Selection,
        origin: Option<Spanned<Value>>,
    },
    /// `insert adapters = houlsby { … } after block.*.{attn,ff}`, or
    /// `reparam low_rank = lora { … } on block.*.attn.{q,v}`
    Place(Place),
    /// `stage tune { … }`
    Stage { name: Name, block: Block },
}

/// Where a delta stands to what is selected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preposition {
    /// `insert … after`: it changes what a module gives.
    After,
    /// `insert … beside`: it is added to what a module gives, and reads what the module reads.
    Beside,
    /// `insert … before`: it stands before what a module reads.
    Before,
    /// `reparam … on`: it changes a weight.
    On,
}

impl Preposition {
    /// The word.
    pub fn word(self) -> &'static str {
        match self {
            Preposition::After => "after",
            Preposition::Beside => "beside",
            Preposition::Before => "before",
            Preposition::On => "on",
        }
    }

    /// The keyword of its statement.
    pub fn keyword(self) -> &'static str {
        match self {
            Preposition::On => "reparam",
            _ => "insert",
        }
    }
}

/// A method and where it goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// The delta's name.
    pub name: Name,
    /// The method's name.
    pub method: Name,
    /// The method's settings.
    pub block: Option<Block>,
    /// Where it stands to the modules.
    pub preposition: Preposition,
    /// The modules.
    pub selection: Selection,
    /// The run from which its parameters begin: `from "runs/x"`.
    pub origin: Option<Spanned<Value>>,
}

/// `{ key = value … }`
#[derive(Clone, Debug)]
pub struct Block {
    /// In the order of the file.
    pub settings: Vec<Setting>,
    /// From brace to brace.
    pub span: Span,
}

impl PartialEq for Block {
    fn eq(&self, other: &Self) -> bool {
        self.settings == other.settings
    }
}

impl Block {
    /// The setting of this key.
    pub fn setting(&self, key: &str) -> Option<&Setting> {
        self.settings.iter().find(|setting| setting.key.node == key)
    }
}

/// `key = value`
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// The key.
    pub key: Name,
    /// The value.
    pub value: Spanned<Value>,
}

impl Setting {
    /// From the key to the end of the value.
    pub fn span(&self) -> Span {
        self.key.span.to(self.value.span)
    }
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    /// `8`, `1e-3`
    Number(f64),
    /// `6%`, as a fraction: 0.06
    Percent(f64),
    /// `"text"`
    Text(String),
    /// `best`: a word of the language, a field, or a param
    Word(String),
    /// `[a, b]`
    List(Vec<Spanned<Value>>),
    /// `{ "0" = negative }`
    Block(Block),
    /// `tsv("train.tsv")`
    Call {
        name: Name,
        arguments: Vec<Argument>,
    },
    /// `adamw { lr = 1e-3 }`
    Record { name: Name, block: Block },
    /// `every 200 steps`; `every epoch` has no count
    Every {
        count: Option<Box<Spanned<Value>>>,
        unit: Unit,
    },
}

impl Value {
    /// What a person calls a value of this type.
    pub fn describe(&self) -> &'static str {
        match self {
            Value::Number(_) => "a number",
            Value::Percent(_) => "a percentage",
            Value::Text(_) => "a string",
            Value::Word(_) => "a word",
            Value::List(_) => "a list",
            Value::Block(_) => "a block",
            Value::Call { .. } => "a call",
            Value::Record { .. } => "a named block",
            Value::Every { .. } => "an interval",
        }
    }
}

/// An argument of a call.
#[derive(Clone, Debug, PartialEq)]
pub struct Argument {
    /// `key` in `f(key = value)`.
    pub key: Option<Name>,
    /// The value.
    pub value: Spanned<Value>,
}

/// What an interval counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Unit {
    Steps,
    Epochs,
}

/// Which modules: a selector, less some, and perhaps how many there must be.
#[derive(Clone, Debug)]
pub struct Selection {
    /// What is chosen.
    pub selector: Selector,
    /// What is taken out again.
    pub exceptions: Vec<Selector>,
    /// `expect 12`
    pub expected: Option<Spanned<Amount>>,
    /// The whole selection.
    pub span: Span,
}

impl PartialEq for Selection {
    fn eq(&self, other: &Self) -> bool {
        (&self.selector, &self.exceptions, &self.expected)
            == (&other.selector, &other.exceptions, &other.expected)
    }
}

/// `block.*.attn.{q,v}`, `"encoder.layer.0.output.dense"`, `random 4 of block.*.attn.q`
#[derive(Clone, Debug)]
pub struct Selector {
    /// `random 4 of`
    pub random: Option<Spanned<Amount>>,
    /// The pattern.
    pub pattern: Pattern,
    /// The whole selector.
    pub span: Span,
}

impl PartialEq for Selector {
    fn eq(&self, other: &Self) -> bool {
        (&self.random, &self.pattern) == (&other.random, &other.pattern)
    }
}

/// A pattern over paths.
#[derive(Clone, Debug, PartialEq)]
pub enum Pattern {
    /// In the module tree's names.
    Path(Vec<Segment>),
    /// In the checkpoint's own names, quoted.
    Checkpoint(Vec<String>),
}

/// One segment of a path.
#[derive(Clone, Debug, PartialEq)]
pub enum Segment {
    /// `**`: any number of names, none included.
    AnyDepth,
    /// `*`: one name.
    AnyName,
    /// A name.
    Name(String),
    /// `{q,v}`: one of several paths.
    Choice(Vec<Vec<Segment>>),
    /// `block[0..4]`: the name and then numbers in a range; the end is excluded.
    Range(String, Spanned<Amount>, Option<Spanned<Amount>>),
    /// `block[last 2]`
    Last(String, Spanned<Amount>),
}

/// A whole number, or the param that holds one.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Amount {
    Number(usize),
    Param(String),
}
