//! Secrets in a URL, known by their place: a user, a password, the values of a query.

/// Values shorter than this are no secrets: a version of an interface, a flag.
const CHARS_MIN: usize = 6;

/// The parts of a URL that must not be shown, as they are written there.
pub(super) fn of_url(url: &str) -> Vec<&str> {
    let (before, query) = url.split_once('?').unwrap_or((url, ""));
    let rest = before.split_once("://").map_or(before, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or_default();
    let user = authority.rsplit_once('@').map_or("", |(user, _)| user);
    let (user, password) = user.split_once(':').unwrap_or((user, ""));
    let query = query.split('#').next().unwrap_or_default();
    let values = query.split('&').filter_map(|pair| Some(pair.split_once('=')?.1));
    // A password is one however short.
    let short = (!password.is_empty()).then_some(password);
    let rest = [user].into_iter().chain(values).filter(|text| text.len() >= CHARS_MIN);
    short.into_iter().chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_known_by_its_place() {
        assert_eq!(of_url("https://host/v1"), Vec::<&str>::new());
        assert_eq!(of_url("https://host/v1?api-version=1"), Vec::<&str>::new());
        assert_eq!(of_url("https://me:pw@host/v1"), ["pw"]);
        assert_eq!(of_url("https://sk-long-token@host/v1"), ["sk-long-token"]);
        assert_eq!(of_url("http://h/v1?a=1&key=AIzaSesame#x"), ["AIzaSesame"]);
        assert_eq!(of_url("http://h/a@b?key="), Vec::<&str>::new());
    }
}
