//! The enum of all methods, generated from the list in `mod.rs`.

/// Generates the enum of all methods and forwards every call to the method in it.
macro_rules! methods {
    ($($file:ident::$method:ident,)*) => {
        /// A method with its settings.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "name", rename_all = "snake_case")]
        #[allow(missing_docs)]
        pub enum Method {
            $($method($file::$method),)*
        }

        $(impl From<$file::$method> for Method {
            fn from(method: $file::$method) -> Self {
                Method::$method(method)
            }
        })*

        impl Method {
            /// Name and preposition of all methods.
            pub const ALL: &'static [(&'static str, Preposition)] =
                &[$(($file::$method::NAME, $file::$method::PREPOSITION),)*];

            /// Reads the settings of the method of this name.
            pub fn read(name: &str, fields: &Fields, config: &Config) -> Option<Self> {
                $(if name == $file::$method::NAME {
                    return Some(Method::$method($file::$method::read(fields, config)));
                })*
                None
            }

            /// The method's name in the language.
            pub fn name(&self) -> &'static str {
                match self { $(Method::$method(_) => $file::$method::NAME,)* }
            }

            /// See [`DeltaMethod::PREPOSITION`].
            pub fn preposition(&self) -> Preposition {
                match self { $(Method::$method(_) => $file::$method::PREPOSITION,)* }
            }

            /// See [`DeltaMethod::PEFT_KIND`].
            pub fn peft_kind(&self) -> Option<&'static str> {
                match self { $(Method::$method(_) => $file::$method::PEFT_KIND,)* }
            }

            /// See [`DeltaMethod::CAN_BE_GATED`].
            pub fn can_be_gated(&self) -> bool {
                match self { $(Method::$method(_) => $file::$method::CAN_BE_GATED,)* }
            }

            /// See [`DeltaMethod::SITES`].
            pub fn sites(&self) -> &'static str {
                match self { $(Method::$method(_) => $file::$method::SITES,)* }
            }

            /// See [`DeltaMethod::accepts`].
            pub fn accepts(&self, site: Site) -> bool {
                match self { $(Method::$method(_) => $file::$method::accepts(site),)* }
            }

            /// See [`DeltaMethod::check`].
            ///
            /// # Errors
            /// What is wrong, in one sentence.
            pub fn check(&self, module: &Module) -> Result<(), String> {
                match self { $(Method::$method(method) => method.check(module),)* }
            }

            /// See [`DeltaMethod::parameters`].
            pub fn parameters(&self, module: &Module) -> Vec<NewParameter> {
                match self { $(Method::$method(method) => method.parameters(module),)* }
            }

            /// See [`DeltaMethod::shared`].
            pub fn shared(&self, modules: &[&Module]) -> Vec<NewParameter> {
                match self { $(Method::$method(method) => method.shared(modules),)* }
            }

            /// See [`DeltaMethod::texts`].
            pub fn texts(&self) -> Vec<&str> {
                match self { $(Method::$method(method) => method.texts(),)* }
            }

            /// See [`DeltaMethod::set_tokens`].
            ///
            /// # Errors
            /// What is wrong with them, in one sentence.
            pub fn set_tokens(&mut self, tokens: Vec<Vec<usize>>) -> Result<(), String> {
                match self { $(Method::$method(method) => method.set_tokens(tokens),)* }
            }

            /// See [`DeltaMethod::tokens`].
            pub fn tokens(&self) -> usize {
                match self { $(Method::$method(method) => method.tokens(),)* }
            }

            /// See [`DeltaMethod::input`].
            ///
            /// # Errors
            /// The device fails, for example for want of memory.
            pub fn input(
                &self,
                at: &At,
                x: Matrix,
            ) -> Outcome<Matrix> {
                match self { $(Method::$method(method) => method.input(at, x),)* }
            }

            /// See [`DeltaMethod::forward`].
            ///
            /// # Errors
            /// The device fails, for example for want of memory.
            pub fn forward(
                &self,
                at: &At,
                x: &Matrix,
                y: Matrix,
            ) -> Outcome<Matrix> {
                match self { $(Method::$method(method) => method.forward(at, x, y),)* }
            }

            /// See [`DeltaMethod::look_up`].
            ///
            /// # Errors
            /// The device fails, for example for want of memory.
            pub fn look_up(
                &self,
                at: &At,
                indices: &[usize],
                y: Matrix,
            ) -> Outcome<Matrix> {
                match self { $(Method::$method(method) => method.look_up(at, indices, y),)* }
            }

            /// See [`DeltaMethod::prefix`].
            ///
            /// # Errors
            /// The device fails, for example for want of memory.
            pub fn prefix(
                &self,
                at: &At,
            ) -> Outcome<Option<[Matrix; 2]>> {
                match self { $(Method::$method(method) => method.prefix(at),)* }
            }

            /// See [`DeltaMethod::prompt`].
            ///
            /// # Errors
            /// The device fails, for example for want of memory.
            pub fn prompt(&self, at: &At) -> Outcome<Option<Matrix>> {
                match self { $(Method::$method(method) => method.prompt(at),)* }
            }

            /// See [`DeltaMethod::dropout`].
            pub fn dropout(&self) -> f32 {
                match self { $(Method::$method(method) => method.dropout(),)* }
            }

            /// See [`DeltaMethod::reads_frame`].
            pub fn reads_frame(&self) -> bool {
                match self { $(Method::$method(method) => method.reads_frame(),)* }
            }

            /// See [`DeltaMethod::begins_after`].
            pub fn begins_after(&self) -> Option<&[usize]> {
                match self { $(Method::$method(method) => method.begins_after(),)* }
            }

            /// See [`DeltaMethod::second_factor`].
            pub fn second_factor(&self) -> Option<&'static str> {
                match self { $(Method::$method(method) => method.second_factor(),)* }
            }

            /// See [`DeltaMethod::on_host`].
            pub fn on_host(&self) -> Option<&dyn OnHost> {
                match self { $(Method::$method(method) => method.on_host(),)* }
            }

            /// The paper that the method is from.
            pub fn paper(&self) -> &'static str {
                match self { $(Method::$method(_) => $file::$method::PAPER,)* }
            }

            /// See [`DeltaMethod::peft_adapter`].
            pub fn peft_adapter(&self) -> PeftAdapter<'_> {
                match self { $(Method::$method(method) => method.peft_adapter(),)* }
            }

            /// See [`DeltaMethod::peft_list`].
            pub fn peft_list(&self, module: &Module) -> Option<(&'static str, bool)> {
                match self { $(Method::$method(method) => method.peft_list(module),)* }
            }

            /// See [`DeltaMethod::peft`].
            pub fn peft(&self) -> Option<PeftForm> {
                match self { $(Method::$method(method) => method.peft(),)* }
            }

            /// See [`DeltaMethod::peft_tensor`].
            pub fn peft_tensor(
                &self,
                module: &Module,
                parameter: &NewParameter,
            ) -> Option<PeftTensor> {
                match self { $(Method::$method(method) => method.peft_tensor(module, parameter),)* }
            }

            /// The method that PEFT configured, if it is one of ours.
            pub fn from_peft(config: &PeftConfig, module: &PeftModule) -> Option<Self> {
                $(if let Some(method) = $file::$method::from_peft(config, module) {
                    return Some(Method::$method(method));
                })*
                None
            }

            /// See [`DeltaMethod::fold`].
            pub fn fold(
                &self,
                module: &Module,
                layer: &mut Folded,
                tensor: &dyn Fn(&str) -> Vec<f32>,
            ) -> bool {
                match self { $(Method::$method(method) => method.fold(module, layer, tensor),)* }
            }
        }
    };
}
pub(super) use methods;
