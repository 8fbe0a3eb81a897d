//! Looking at JSON as text, where parsing would hide what the contract promises: the order of keys, a number's digits.

/// The keys of the outermost object, in the order in which they are written.
pub fn top_level_keys(document: &str) -> Vec<String> {
    let mut keys = Vec::new();
    let mut depth = 0;
    let mut characters = document.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '{' | '[' => depth += 1,
            '}' | ']' => depth -= 1,
            '"' => {
                let mut text = String::new();
                while let Some(character) = characters.next() {
                    match character {
                        '\\' => text.extend(characters.next()),
                        '"' => break,
                        other => text.push(other),
                    }
                }
                while characters.next_if(|next| next.is_whitespace()).is_some() {}
                if depth == 1 && characters.peek() == Some(&':') {
                    keys.push(text);
                }
            }
            _ => {}
        }
    }
    keys
}

/// The document without the white space between its tokens (the strings of these tests hold none that matters).
pub fn compact(document: &str) -> String {
    document
        .chars()
        .filter(|character| !character.is_whitespace())
        .collect()
}
