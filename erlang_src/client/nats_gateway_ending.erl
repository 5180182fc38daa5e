%% The reasons for which a connection ends, and everything that follows from each of them. Each
%% reason has one row.
-module(nats_gateway_ending).

-export([error_line/1]).
-export([violation/1]).
-export([publish_denied/1]).
-export([websocket_close/1]).
-export([log_level/1]).
-export([socket/1]).
-export([emqx_reason/1]).
-export([rows/0]).

-export_type([reason/0, ending/0, socket_end/0]).

%% A reason without a row is one that passes by itself, like a broker that is away (`other/0').
-type reason() :: atom() | {denied, Subject :: binary()} | {error, term()} | (Crash :: term()).

%% `close' closes the socket at once. `linger' first reads what the client has sent, so that the
%% kernel does not throw away the bytes that the client has still to get. `abort' drops the bytes
%% that wait in the socket.
-type socket_end() :: close | linger | abort.

-type ending() :: #{
    %% the text of -ERR before the end
    error := none | binary(),
    websocket := {1000..1015, Text :: binary()},
    log := logger:level(),
    socket := socket_end(),
    %% EMQX's own word for the hook `client.disconnected', if it has one
    emqx => atom()
}.

-define(PROTOCOL_VIOLATION, {1002, <<"Protocol Violation">>}).

%% The texts of -ERR are exactly those of nats-server. A reason that nats-server does not have has
%% no text, because an unknown text makes three of the official clients close for good
%% (docs/protocol.md, section 1), and without a text every client reconnects. The codes and texts of
%% WebSocket are those of nats-server, if it has the reason. A row has only the keys that differ
%% from `other/0'.
-spec rows() -> [{atom(), map()}].
rows() ->
    [
        %% Caused by what the client did
        {client_closed, #{
            websocket => {1000, <<"Client Closed">>},
            log => info,
            socket => close,
            emqx => tcp_closed
        }},
        {unknown_protocol_operation, #{
            error => <<"Unknown Protocol Operation">>, websocket => ?PROTOCOL_VIOLATION
        }},
        {maximum_payload_violation, #{
            error => <<"Maximum Payload Violation">>,
            websocket => {1009, <<"Maximum Message Payload Exceeded">>}
        }},
        {maximum_control_line_exceeded, #{
            error => <<"maximum control line exceeded">>,
            websocket => {1008, <<"Maximum Control Line Exceeded">>}
        }},
        {invalid_client_protocol, #{
            error => <<"invalid client protocol">>,
            websocket => {1002, <<"Bad Client Protocol Version">>}
        }},
        {no_responders_requires_headers, #{
            error => <<"no responders requires headers support">>,
            websocket => {1011, <<"No Responders Requires Headers">>}
        }},
        {bad_arguments, #{websocket => ?PROTOCOL_VIOLATION}},
        {bad_size, #{websocket => ?PROTOCOL_VIOLATION}},
        {bad_json, #{websocket => ?PROTOCOL_VIOLATION}},
        {headers_not_supported, #{websocket => ?PROTOCOL_VIOLATION}},
        {client_error, #{websocket => {1002, <<"Parse Error">>}}},
        %% Caused by what the client may do
        {authorization_violation, #{
            error => <<"Authorization Violation">>, websocket => {1008, <<"Authentication Failure">>}
        }},
        {authentication_timeout, #{
            error => <<"Authentication Timeout">>, websocket => {1008, <<"Authentication Timeout">>}
        }},
        {user_authentication_expired, #{
            error => <<"User Authentication Expired">>,
            websocket => {1008, <<"Authentication Expired">>},
            emqx => expired
        }},
        {account_authentication_expired, #{
            error => <<"Account Authentication Expired">>,
            websocket => {1008, <<"Authentication Expired">>},
            emqx => expired
        }},
        %% The text of -ERR has the subject (`error_line/1').
        {permission_denied, #{websocket => {1008, <<"Permission Denied">>}}},
        {maximum_connections_exceeded, #{
            error => <<"maximum connections exceeded">>,
            websocket => {1008, <<"Maximum Connections Exceeded">>}
        }},
        {maximum_account_connections_exceeded, #{
            error => <<"maximum account active connections exceeded">>,
            websocket => {1008, <<"Maximum Account Connections Exceeded">>}
        }},
        {maximum_subscriptions_exceeded, #{
            error => <<"maximum subscriptions exceeded">>,
            websocket => {1008, <<"Maximum Subscriptions Exceeded">>}
        }},
        %% Caused by what the client does not do
        {stale_connection, #{
            error => <<"Stale Connection">>,
            websocket => {1001, <<"Stale Connection">>},
            emqx => keepalive_timeout
        }},
        {slow_consumer, #{
            websocket => {1008, <<"Slow Consumer (Write Deadline)">>}, socket => abort
        }},
        %% Caused by others
        {kicked, #{websocket => {1011, <<"Kicked">>}}},
        {discarded, #{websocket => {1011, <<"Duplicate Client ID">>}}},
        {takenover, #{websocket => {1011, <<"Duplicate Client ID">>}}}
    ].

%% The row of a reason that will pass, so that the client may reconnect.
-spec other() -> ending().
other() ->
    #{error => none, websocket => {1001, <<"Server Shutdown">>}, log => notice, socket => linger}.

-spec error_line(reason()) -> iodata().
error_line({denied, Subject}) ->
    publish_denied(Subject);
error_line(Reason) ->
    case find(Reason) of
        #{error := none} -> [];
        #{error := Text} -> [<<"-ERR '">>, Text, <<"'\r\n">>]
    end.

%% The line of a refusal. Only `{denied, Subject}' ends the connection as well.
-spec violation(What :: iodata()) -> iodata().
violation(What) -> [<<"-ERR 'Permissions Violation for ">>, What, <<"'\r\n">>].

-spec publish_denied(Subject :: binary()) -> iodata().
publish_denied(Subject) -> violation([<<"Publish to ">>, nats_gateway_nif:quote(Subject)]).

-spec websocket_close(reason()) -> {1000..1015, Text :: binary()}.
websocket_close(Reason) -> maps:get(websocket, find(Reason)).

-spec log_level(reason()) -> logger:level().
log_level(Reason) -> maps:get(log, find(Reason)).

-spec socket(reason()) -> socket_end().
socket(Reason) -> maps:get(socket, find(Reason)).

%% The word for the hook `client.disconnected' and for the metrics by reason.
-spec emqx_reason(reason()) -> atom().
emqx_reason({error, Reason}) -> emqx_reason(Reason);
emqx_reason(Reason) when is_atom(Reason) -> maps:get(emqx, find(Reason), Reason);
emqx_reason(_) -> internal_error.

find({denied, _}) -> find(permission_denied);
find(Reason) ->
    case lists:keyfind(Reason, 1, rows()) of
        {_, Row} -> maps:merge(other(), Row);
        false -> other()
    end.
