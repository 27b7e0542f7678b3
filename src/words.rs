//! Types that appear in JSON documents as text. `words!` is for closed sets of words: one list gives the enum, the names
//! of its variants and its schema, so that the schema lists exactly the words that are written. `text_in_json!` is for
//! types whose text is made from what they hold.
//!
//! Documents are read again, also those of other versions, which have other words. A word that is not known is no error
//! then: it is read as `NotKnown`, and so is null.

/// Defines enums whose variants are words of JSON documents.
macro_rules! words {
    ($($(#[doc = $doc:literal])+ $name:ident { $($(#[doc = $vdoc:literal])+ $variant:ident = $text:literal,)+ })+) => {$(
        $(#[doc = $doc])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[doc = $vdoc])+ $variant,)+
            /// Only in documents that were read: another version wrote null, or a word that this one does not know. It is
            /// null in JSON.
            NotKnown,
        }
        impl $name {
            /// All variants that have a word, in the order of their declaration.
            #[cfg(any(test, feature = "internals"))]
            pub const ALL: &[$name] = &[$($name::$variant),+];

            /// The word that stands for this variant in JSON, or `not known`.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $($name::$variant => $text,)+
                    $name::NotKnown => "not known",
                }
            }
        }
        /// What a document says that does not say it: `NotKnown`.
        impl Default for $name {
            fn default() -> $name {
                $name::NotKnown
            }
        }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                match self {
                    $name::NotKnown => s.serialize_none(),
                    word => s.serialize_str(word.as_str()),
                }
            }
        }
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<$name, D::Error> {
                // An option is asked for because a key that is missing is none, too.
                let word = Option::<std::borrow::Cow<'de, str>>::deserialize(d)?;
                Ok(match word.as_deref() {
                    $(Some($text) => $name::$variant,)+
                    _ => $name::NotKnown,
                })
            }
        }
        #[cfg(feature = "cli")]
        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                let description = [
                    concat!($($doc, "\n"),+).trim().to_string(),
                    "These are all that this version writes; later ones may have more.".to_string(),
                    $(format!("`{}`: {}", $text, concat!($($vdoc),+).trim()),)+
                ].join("\n");
                schemars::json_schema!({ "description": description, "type": "string", "enum": [$($text),+] })
            }
        }
    )+};
}

/// Gives types with `Display` the JSON form of that text, and lets their function `from_text` read it. The schema
/// says no more than that it is text, and each key describes what its text means.
macro_rules! text_in_json {
    ($($name:ty),+) => {$(
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<$name, D::Error> {
                String::deserialize(d).map(<$name>::from_text)
            }
        }
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        #[cfg(feature = "cli")]
        impl schemars::JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string" })
            }
        }
    )+};
}
