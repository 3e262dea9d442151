//! Signing in with an operator's token. The cookie holds the token itself: HttpOnly, Secure, of this
//! site only, so no other site's form can use it, and no session has to be kept.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{Html, IntoResponse, Redirect, Response};
use serde::Deserialize;

use super::html::{escape, page};
use crate::api::{ApiError, Form, operator_with};
use crate::app::Shared;

const COOKIE: &str = "farlight";
/// How long a browser keeps the cookie, seconds.
const MAX_AGE: u32 = 12 * 3600;

/// The form.
pub(super) async fn form() -> Html<String> {
    render("")
}

fn render(message: &str) -> Html<String> {
    let message =
        if message.is_empty() { String::new() } else { format!("<p class=bad>{}</p>", escape(message)) };
    page(
        "Sign in",
        "",
        &format!(
            "<form method=post action=/console/login class=card><p>Paste the token of <code>operator.json</code>.</p>{message}\
             <input type=password name=token autocomplete=current-password required autofocus> <button>Sign in</button></form>"
        ),
    )
}

#[derive(Deserialize)]
pub(super) struct Login {
    token: String,
}

pub(super) async fn login(State(app): State<Shared>, Form(login): Form<Login>) -> Result<Response, ApiError> {
    let token = login.token.trim();
    if operator_with(&app, token).await?.is_none() {
        return Ok((StatusCode::UNAUTHORIZED, render("This token is not known.")).into_response());
    }
    let cookie =
        format!("{COOKIE}={token}; Path=/console; Max-Age={MAX_AGE}; HttpOnly; Secure; SameSite=Strict");
    let cookie = HeaderValue::from_str(&cookie).map_err(ApiError::internal)?;
    Ok(([(header::SET_COOKIE, cookie)], Redirect::to("/console")).into_response())
}

pub(super) async fn logout() -> Response {
    let cookie =
        HeaderValue::from_static("farlight=; Path=/console; Max-Age=0; HttpOnly; Secure; SameSite=Strict");
    ([(header::SET_COOKIE, cookie)], Redirect::to("/console/login")).into_response()
}

fn token(headers: &HeaderMap) -> Option<&str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(name, _)| *name == COOKIE)
        .map(|(_, value)| value)
}

pub(super) async fn require(
    State(app): State<Shared>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let operator = match token(request.headers()) {
        Some(token) => operator_with(&app, token).await?,
        None => None,
    };
    let Some(operator) = operator else { return Ok(Redirect::to("/console/login").into_response()) };
    request.extensions_mut().insert(operator);
    Ok(next.run(request).await)
}
