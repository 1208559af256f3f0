//! The enum of all tasks, generated from the list in `mod.rs`.

/// Generates the enum of all tasks and forwards every call to the task in it.
macro_rules! tasks {
    ($($file:ident::$task:ident,)*) => {
        /// A task with its settings.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "kind", rename_all = "snake_case")]
        #[allow(missing_docs)]
        pub enum Task {
            $($task($file::$task),)*
        }

        $(impl From<$file::$task> for Task {
            fn from(task: $file::$task) -> Self {
                Task::$task(task)
            }
        })*

        impl Task {
            /// The names of all tasks.
            pub const NAMES: &'static [&'static str] = &[$($file::$task::NAME,)*];

            /// Reads the settings of the task of this name.
            pub fn read(name: &str, fields: &Fields) -> Option<Self> {
                $(if name == $file::$task::NAME {
                    return Some(Task::$task($file::$task::read(fields)));
                })*
                None
            }

            /// The task's name in the language.
            pub fn name(&self) -> &'static str {
                match self { $(Task::$task(_) => $file::$task::NAME,)* }
            }

            /// See [`TaskKind::texts`].
            pub fn texts(&self) -> &[String] {
                match self { $(Task::$task(task) => task.texts(),)* }
            }

            /// See [`TaskKind::targets`].
            pub fn targets(&self) -> &[String] {
                match self { $(Task::$task(task) => task.targets(),)* }
            }

            /// See [`TaskKind::shares`].
            pub fn shares(&self, counts: &[usize]) -> Option<Shares> {
                match self { $(Task::$task(task) => task.shares(counts),)* }
            }

            /// See [`TaskKind::has_text_target`].
            pub fn has_text_target(&self) -> bool {
                match self { $(Task::$task(task) => task.has_text_target(),)* }
            }

            /// See [`TaskKind::writes`].
            pub fn writes(&self) -> bool {
                match self { $(Task::$task(task) => task.writes(),)* }
            }

            /// See [`TaskKind::wishes`].
            pub fn wishes(&self) -> Wishes {
                match self { $(Task::$task(task) => task.wishes(),)* }
            }

            /// See [`TaskKind::has_answers`].
            pub fn has_answers(&self) -> bool {
                match self { $(Task::$task(task) => task.has_answers(),)* }
            }

            /// See [`TaskKind::is_structured`].
            pub fn is_structured(&self, column: &str) -> bool {
                match self { $(Task::$task(task) => task.is_structured(column),)* }
            }

            /// See [`TaskKind::has_messages`].
            pub fn has_messages(&self, column: &str) -> bool {
                match self { $(Task::$task(task) => task.has_messages(column),)* }
            }

            /// See [`TaskKind::may_be_null`].
            pub fn may_be_null(&self, column: &str) -> bool {
                match self { $(Task::$task(task) => task.may_be_null(column),)* }
            }

            /// See [`TaskKind::needs_all_texts`].
            pub fn needs_all_texts(&self) -> bool {
                match self { $(Task::$task(task) => task.needs_all_texts(),)* }
            }

            /// See [`TaskKind::system`].
            pub fn system(&self) -> Option<&str> {
                match self { $(Task::$task(task) => task.system(),)* }
            }

            /// See [`TaskKind::encode`].
            ///
            /// # Errors
            /// The value is no target of this task, or a text cannot be encoded.
            pub fn encode(&self, row: &[String], encoder: &dyn Encoder) -> Result<Example, Problem> {
                match self { $(Task::$task(task) => task.encode(row, encoder),)* }
            }

            /// See [`TaskKind::open`].
            ///
            /// # Errors
            /// The row cannot become a text.
            pub fn open(&self, row: &[String], encoder: &dyn Encoder) -> Result<Marked, Problem> {
                match self { $(Task::$task(task) => task.open(row, encoder),)* }
            }

            /// See [`TaskKind::target_of`].
            ///
            /// # Errors
            /// The values are no target of this task.
            pub fn target_of(&self, values: &[String]) -> Result<Target, Refusal> {
                match self { $(Task::$task(task) => task.target_of(values),)* }
            }

            /// See [`TaskKind::comparison`].
            pub fn comparison(&self) -> Option<Comparison> {
                match self { $(Task::$task(task) => task.comparison(),)* }
            }

            /// See [`TaskKind::head`].
            pub fn head(&self) -> HeadKind {
                match self { $(Task::$task(task) => task.head(),)* }
            }

            /// See [`TaskKind::outputs`].
            pub fn outputs(&self) -> usize {
                match self { $(Task::$task(task) => task.outputs(),)* }
            }

            /// See [`TaskKind::labels`].
            pub fn labels(&self) -> &[Label] {
                match self { $(Task::$task(task) => task.labels(),)* }
            }

            /// See [`TaskKind::lacks_labels`].
            pub fn lacks_labels(&self) -> bool {
                match self { $(Task::$task(task) => task.lacks_labels(),)* }
            }

            /// See [`TaskKind::labels_in`].
            ///
            /// # Errors
            /// The values are no labels.
            pub fn labels_in(&self, values: &[String]) -> Result<Vec<String>, Refusal> {
                match self { $(Task::$task(task) => task.labels_in(values),)* }
            }

            /// See [`TaskKind::set_labels`].
            ///
            /// # Errors
            /// They cannot be this task's.
            pub fn set_labels(&mut self, labels: Vec<Label>) -> Result<(), Refusal> {
                match self { $(Task::$task(task) => task.set_labels(labels),)* }
            }

            /// See [`TaskKind::has_one_label`].
            pub fn has_one_label(&self) -> bool {
                match self { $(Task::$task(task) => task.has_one_label(),)* }
            }

            /// See [`TaskKind::measures`].
            pub fn measures(&self) -> &'static [Metric] {
                match self { $(Task::$task(task) => task.measures(),)* }
            }

            /// See [`TaskKind::cloze`].
            pub fn cloze(&self) -> Option<&Cloze> {
                match self { $(Task::$task(task) => task.cloze(),)* }
            }

            /// See [`TaskKind::cloze_mut`].
            pub fn cloze_mut(&mut self) -> Option<&mut Cloze> {
                match self { $(Task::$task(task) => task.cloze_mut(),)* }
            }

            /// See [`TaskKind::source_prefix`].
            pub fn source_prefix(&self) -> &str {
                match self { $(Task::$task(task) => task.source_prefix(),)* }
            }

            /// See [`TaskKind::set_source_prefix`].
            pub fn set_source_prefix(&mut self, prefix: &str) -> bool {
                match self { $(Task::$task(task) => task.set_source_prefix(prefix),)* }
            }

            /// See [`TaskKind::noise`].
            pub fn noise(&self) -> Option<Noise> {
                match self { $(Task::$task(task) => task.noise(),)* }
            }

            /// See [`TaskKind::check`].
            ///
            /// # Errors
            /// The backbone cannot do the task.
            pub fn check(&self, config: &Config) -> Result<(), Problem> {
                match self { $(Task::$task(task) => task.check(config),)* }
            }

            /// See [`TaskKind::metrics`].
            pub fn metrics(&self, found: &Predictions) -> Vec<(Metric, f64)> {
                match self { $(Task::$task(task) => task.metrics(found),)* }
            }

            /// See [`TaskKind::by_label`].
            pub fn by_label(&self, found: &Predictions) -> Vec<OfLabel> {
                match self { $(Task::$task(task) => task.by_label(found),)* }
            }

            /// See [`TaskKind::answer`].
            pub fn answer(&self, row: &[String], example: &Example, logits: &[f32]) -> Option<Vec<(String, Value)>> {
                match self { $(Task::$task(task) => task.answer(row, example, logits),)* }
            }

            /// See [`TaskKind::outputs_of_config`].
            pub fn outputs_of_config(&self) -> Option<(Map<String, Value>, Vec<String>)> {
                match self { $(Task::$task(task) => task.outputs_of_config(),)* }
            }

            /// Whether the head of a language model answers.
            pub fn uses_language_model(&self) -> bool {
                self.head() == HeadKind::LanguageModel
            }

            /// Whether it answers with a label or a number, and not with a text.
            pub fn predicts(&self) -> bool {
                let chooses = matches!(self.comparison(), Some(Comparison::Choice { .. }));
                chooses || !self.predicts_tokens()
            }

            /// Whether tokens are predicted, and no label or number.
            pub fn predicts_tokens(&self) -> bool {
                self.uses_language_model() && self.cloze().is_none()
            }
        }
    };
}
pub(super) use tasks;
