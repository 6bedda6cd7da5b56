//! The HTTP/1.1 side: a harness reads the totals, zeroes them and sets the rules.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::faults::Rule;
use crate::service::Sink;

const MAX_BODY_BYTES: usize = 1 << 20;

/// Serves `GET /stats`, `GET /totals` (the same without the samples, for asking often), `POST /reset` and
/// `POST /faults` until `stop`.
pub async fn serve(listener: TcpListener, sink: Arc<Sink>, stop: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let Ok((stream, _)) = accepted else {
            tokio::task::yield_now().await;
            continue;
        };
        let (sink, stop) = (sink.clone(), stop.clone());
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, sink.clone()));
            tokio::select! {
                _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service) => {}
                () = stop.cancelled() => {}
            }
        });
    }
}

async fn answer(request: Request<Incoming>, sink: Arc<Sink>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/stats") => {
            let stats = sink.stats().clone();
            (StatusCode::OK, serde_json::to_string(&stats).expect("numbers and lists are JSON"))
        }
        (&Method::GET, "/totals") => {
            let totals = sink.stats().totals();
            (StatusCode::OK, serde_json::to_string(&totals).expect("numbers and lists are JSON"))
        }
        (&Method::POST, "/reset") => {
            sink.stats().reset();
            (StatusCode::OK, String::new())
        }
        (&Method::POST, "/faults") => match set_faults(request.into_body(), &sink).await {
            Ok(()) => (StatusCode::OK, String::new()),
            Err(error) => (StatusCode::BAD_REQUEST, error),
        },
        _ => (StatusCode::NOT_FOUND, "GET /stats, GET /totals, POST /reset or POST /faults\n".to_owned()),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    Ok(response)
}

async fn set_faults(body: Incoming, sink: &Sink) -> Result<(), String> {
    let body = Limited::new(body, MAX_BODY_BYTES).collect().await.map_err(|error| error.to_string())?;
    let rules: Vec<Rule> = serde_json::from_slice(&body.to_bytes()).map_err(|error| error.to_string())?;
    let away = {
        let mut faults = sink.faults();
        faults.set(rules)?;
        faults.refuse_connections()
    };
    if away {
        sink.close_connections();
    }
    Ok(())
}
