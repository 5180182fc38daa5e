-module(nats_gateway_ending_tests).

-include_lib("eunit/include/eunit.hrl").

-define(E, nats_gateway_ending).

-define(SHUTDOWN, {1001, <<"Server Shutdown">>}).
-define(VIOLATION, {1002, <<"Protocol Violation">>}).

%% Every reason that a type of the connection, the channel, the decoder, WebSocket or a host names:
%% the text of -ERR, the close frame, the level of the log, what becomes of the socket, EMQX's word.
expected() ->
    [
        {client_closed, none, {1000, <<"Client Closed">>}, info, close, tcp_closed},
        {unknown_protocol_operation, "Unknown Protocol Operation", ?VIOLATION, notice, linger, same},
        {bad_arguments, none, ?VIOLATION, notice, linger, same},
        {bad_size, none, ?VIOLATION, notice, linger, same},
        {bad_json, none, ?VIOLATION, notice, linger, same},
        {headers_not_supported, none, ?VIOLATION, notice, linger, same},
        {client_error, none, {1002, <<"Parse Error">>}, notice, linger, same},
        {invalid_client_protocol, "invalid client protocol",
            {1002, <<"Bad Client Protocol Version">>}, notice, linger, same},
        {no_responders_requires_headers, "no responders requires headers support",
            {1011, <<"No Responders Requires Headers">>}, notice, linger, same},
        {maximum_payload_violation, "Maximum Payload Violation",
            {1009, <<"Maximum Message Payload Exceeded">>}, notice, linger, same},
        {maximum_control_line_exceeded, "maximum control line exceeded",
            {1008, <<"Maximum Control Line Exceeded">>}, notice, linger, same},
        {maximum_connections_exceeded, "maximum connections exceeded",
            {1008, <<"Maximum Connections Exceeded">>}, notice, linger, same},
        {maximum_account_connections_exceeded, "maximum account active connections exceeded",
            {1008, <<"Maximum Account Connections Exceeded">>}, notice, linger, same},
        {maximum_subscriptions_exceeded, "maximum subscriptions exceeded",
            {1008, <<"Maximum Subscriptions Exceeded">>}, notice, linger, same},
        {authorization_violation, "Authorization Violation", {1008, <<"Authentication Failure">>},
            notice, linger, same},
        {authentication_timeout, "Authentication Timeout", {1008, <<"Authentication Timeout">>},
            notice, linger, same},
        {user_authentication_expired, "User Authentication Expired",
            {1008, <<"Authentication Expired">>}, notice, linger, expired},
        {account_authentication_expired, "Account Authentication Expired",
            {1008, <<"Authentication Expired">>}, notice, linger, expired},
        {permission_denied, none, {1008, <<"Permission Denied">>}, notice, linger, same},
        {stale_connection, "Stale Connection", {1001, <<"Stale Connection">>}, notice, linger,
            keepalive_timeout},
        {slow_consumer, none, {1008, <<"Slow Consumer (Write Deadline)">>}, notice, abort, same},
        {kicked, none, {1011, <<"Kicked">>}, notice, linger, same},
        {discarded, none, {1011, <<"Duplicate Client ID">>}, notice, linger, same},
        {takenover, none, {1011, <<"Duplicate Client ID">>}, notice, linger, same}
    ] ++
        [
            {Reason, none, ?SHUTDOWN, notice, linger, same}
         || Reason <- [
                upstream_lost, idle_timeout, session_changed, settings_changed, too_many_logins,
                drained, shutdown, handshake_timeout, no_proxy_header, bad_proxy_header, not_tls,
                tls_handshake_failed, websocket_refused, websocket_protocol_error,
                websocket_frame_too_large, websocket_message_too_large,
                websocket_bad_compression, server_busy, emfile
            ]
        ].

every_reason_test_() ->
    [
        {atom_to_list(Reason), [
            ?_assertEqual(line(Text), iolist_to_binary(?E:error_line(Reason))),
            ?_assertEqual(Close, ?E:websocket_close(Reason)),
            ?_assertEqual(Level, ?E:log_level(Reason)),
            ?_assertEqual(Socket, ?E:socket(Reason)),
            ?_assertEqual(word(Word, Reason), ?E:emqx_reason(Reason)),
            ?_assertEqual(word(Word, Reason), ?E:emqx_reason({error, Reason}))
        ]}
     || {Reason, Text, Close, Level, Socket, Word} <- expected()
    ].

every_row_is_expected_test() ->
    Expected = [element(1, Row) || Row <- expected()],
    ?assertEqual([], [Reason || {Reason, _} <- ?E:rows(), not lists:member(Reason, Expected)]),
    ?assertEqual(length(?E:rows()), length(lists:ukeysort(1, ?E:rows()))).

%% A close frame holds 125 bytes, two of them the code.
every_text_fits_a_close_frame_test_() ->
    [
        ?_assert(byte_size(element(2, ?E:websocket_close(Reason))) =< 123)
     || {Reason, _} <- ?E:rows()
    ].

a_denied_subject_is_named_test() ->
    ?assertEqual(
        <<"-ERR 'Permissions Violation for Publish to \"a.b\"'\r\n">>,
        iolist_to_binary(?E:error_line({denied, <<"a.b">>}))
    ),
    ?assertEqual({1008, <<"Permission Denied">>}, ?E:websocket_close({denied, <<"a.b">>})).

what_nobody_foresaw_closes_as_what_passes_test() ->
    Crash = {badarg, [{m, f, 0, []}]},
    ?assertEqual(<<>>, iolist_to_binary(?E:error_line(Crash))),
    ?assertEqual(?SHUTDOWN, ?E:websocket_close(Crash)),
    ?assertEqual(linger, ?E:socket(Crash)),
    ?assertEqual(internal_error, ?E:emqx_reason(Crash)).

line(none) -> <<>>;
line(Text) -> iolist_to_binary(["-ERR '", Text, "'\r\n"]).

word(same, Reason) -> Reason;
word(Word, _) -> Word.
