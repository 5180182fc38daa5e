%% The handshake and the frames, as functions. What nats-server does is in test/wire.
-module(nats_gateway_websocket_tests).

-include_lib("eunit/include/eunit.hrl").

-define(WS, nats_gateway_websocket).
-define(KEY, <<"dGhlIHNhbXBsZSBub25jZQ==">>).

%% -------------------------------------------------------------------------------------------
%% Handshake

headers() ->
    [
        {<<"Host">>, <<"a.example:8080">>},
        {<<"Upgrade">>, <<"websocket">>},
        {<<"Connection">>, <<"Upgrade">>},
        {<<"Sec-WebSocket-Key">>, ?KEY},
        {<<"Sec-WebSocket-Version">>, <<"13">>}
    ].

request(Headers) -> request(<<"GET / HTTP/1.1">>, Headers).

request(Line, Headers) ->
    iolist_to_binary([
        [Line, <<"\r\n">>],
        [[Name, <<": ">>, Value, <<"\r\n">>] || {Name, Value} <- Headers],
        <<"\r\n">>
    ]).

with(Name, Value) -> lists:keystore(Name, 1, headers(), {Name, Value}).

without(Name) -> lists:keydelete(Name, 1, headers()).

shake(Request) -> shake(Request, #{}).

shake(Request, Settings) -> shake(Request, Settings, false).

shake(Request, Settings, Secure) ->
    case ?WS:handshake(Request, ?WS:new(Settings, Secure)) of
        {upgrade, Response, Agreed} -> {upgrade, iolist_to_binary(Response), Agreed};
        {refuse, Status, _, Response} -> {refuse, Status, iolist_to_binary(Response)};
        {more, _} -> more
    end.

status(Request) -> status(Request, #{}).

status(Request, Settings) -> status(Request, Settings, false).

status(Request, Settings, Secure) ->
    case shake(Request, Settings, Secure) of
        {upgrade, _, _} -> 101;
        {refuse, Status, _} -> Status;
        more -> more
    end.

%% The key and its answer are those of RFC 6455 section 1.3.
upgrade_test() ->
    ?assertEqual(
        {upgrade,
            <<
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
            >>,
            #{}},
        shake(request(headers()))
    ).

any_spelling_test() ->
    Lines = <<
        "GET /some/path?query HTTP/1.1\nhost: x\nUPGRADE: h2c, WebSocket\n"
        "connection: keep-alive\nConnection:\tfoo , UPGRADE \nSEC-WEBSOCKET-KEY:x\n"
        "sec-websocket-version: 8, 13\nAuthorization: Basic x\nCookie: a=b\n\n"
    >>,
    ?assertEqual(101, status(Lines)),
    ?assertEqual(101, status(request(<<"GET http://a.example/x HTTP/1.1">>, headers()))),
    ?assertEqual(101, status(request(<<"GET / HTTP/1.2">>, headers()))).

every_cut_test() ->
    Request = request(with(<<"Sec-WebSocket-Protocol">>, <<"mqtt, nats">>)),
    Whole = shake(Request),
    lists:foreach(
        fun(Cut) ->
            <<Front:Cut/binary, Back/binary>> = Request,
            {more, Handshake} = ?WS:handshake(Front, ?WS:new(#{}, false)),
            {upgrade, Response, Agreed} = ?WS:handshake(Back, Handshake),
            ?assertEqual(Whole, {upgrade, iolist_to_binary(Response), Agreed})
        end,
        lists:seq(0, byte_size(Request) - 1)
    ).

byte_by_byte_test() ->
    Request = request(headers()),
    {Most, Last} = split_binary(Request, byte_size(Request) - 1),
    Handshake = lists:foldl(
        fun(Byte, H) ->
            {more, NH} = ?WS:handshake(<<Byte>>, H),
            NH
        end,
        ?WS:new(#{}, false),
        binary_to_list(Most)
    ),
    ?assertMatch({upgrade, _, _}, ?WS:handshake(Last, Handshake)).

refused_test_() ->
    [
        ?_assertEqual({Expected, Request}, {status(Request), Request})
     || {Expected, Request} <- [
            {400, request(without(<<"Host">>))},
            {400, request([{<<"Host">>, <<"b">>} | headers()])},
            {400, request(without(<<"Upgrade">>))},
            {400, request(with(<<"Upgrade">>, <<"web socket">>))},
            {400, request(without(<<"Connection">>))},
            {400, request(with(<<"Connection">>, <<"close">>))},
            {400, request(without(<<"Sec-WebSocket-Key">>))},
            {400, request(with(<<"Sec-WebSocket-Key">>, <<>>))},
            {400, request(without(<<"Sec-WebSocket-Version">>))},
            {400, request(with(<<"Sec-WebSocket-Version">>, <<"8">>))},
            {400, request(with(<<"a b">>, <<"c">>))},
            {400, request(with(<<"X">>, <<"a\r\n folded">>))},
            {400, request(with(<<"X">>, <<"a", 0>>))},
            {405, request(<<"POST / HTTP/1.1">>, headers())},
            {405, request(<<"get / HTTP/1.1">>, headers())},
            {400, request(<<"GET / HTTP/1.0">>, headers())},
            {400, request(<<"GET /">>, headers())},
            {505, request(<<"PRI * HTTP/2.0">>, [])},
            {400, <<(request(headers()))/binary, "x">>},
            {400, <<"CONNECT {\"verbose\":false}\r\n">>},
            {400, <<"PING\r\n">>},
            {400, <<16#16, 3, 1, 2, 0>>},
            {400, <<"\r\n">>},
            {more, <<>>},
            {more, <<"GE">>}
        ]
    ].

response_of_refusal_test() ->
    {refuse, 400, Bad} = shake(<<"PING\r\n">>),
    ?assertEqual(
        <<
            "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n"
            "Sec-WebSocket-Version: 13\r\nConnection: close\r\nContent-Length: 12\r\n\r\n"
            "Bad Request\n"
        >>,
        Bad
    ),
    {refuse, 405, Method} = shake(request(<<"PUT / HTTP/1.1">>, headers())),
    ?assertMatch({_, _}, binary:match(Method, <<"\r\nAllow: GET\r\n">>)).

number_of_headers_test() ->
    Filled = fun(Count) ->
        More = [{<<"X", (integer_to_binary(N))/binary>>, <<>>} || N <- lists:seq(1, Count)],
        request(headers() ++ More)
    end,
    Most = 100 - length(headers()),
    ?assertEqual(101, status(Filled(0))),
    ?assertEqual(101, status(Filled(Most))),
    ?assertEqual(431, status(Filled(Most + 1))),
    %% as soon as there are so many, in however many pieces
    New = nats_gateway_websocket:new(#{max_frame_size => infinity, handshake_timeout => 1}, false),
    Send = fun(Bytes, {more, Handshake}) -> nats_gateway_websocket:handshake(Bytes, Handshake) end,
    Begun = Send(<<"GET / HTTP/1.1\r\n">>, {more, New}),
    Full = lists:foldl(Send, Begun, lists:duplicate(100, <<"a:b\r\n">>)),
    ?assertMatch({refuse, 431, <<"too many headers">>, _}, Send(<<"a:b\r\nc">>, Full)).

size_limit_test() ->
    Used = byte_size(request(with(<<"X">>, <<>>))),
    Filler = fun(Size) -> request(with(<<"X">>, binary:copy(<<"x">>, Size - Used))) end,
    ?assertEqual(101, status(Filler(16384))),
    ?assertEqual(431, status(Filler(16385))),
    %% Nor is more collected of a line that does not end.
    ?assertEqual(more, status(binary:copy(<<"G">>, 16384))),
    ?assertEqual(431, status(binary:copy(<<"G">>, 16385))).

path_test_() ->
    Status = fun(Target) ->
        status(request(<<"GET ", Target/binary, " HTTP/1.1">>, headers()), #{path => <<"/nats">>})
    end,
    [
        ?_assertEqual(Expected, Status(Target))
     || {Expected, Target} <- [
            {101, <<"/nats">>},
            {101, <<"/nats?x=1">>},
            {101, <<"http://a.example/nats">>},
            {404, <<"/">>},
            {101, <<"/nats/">>},
            {101, <<"/nats/a/b">>},
            {404, <<"/natsx">>},
            {404, <<"/NATS">>},
            {400, <<"*">>}
        ]
    ].

subprotocol_test_() ->
    Answer = fun(Offered, Settings) ->
        {upgrade, Response, _} = shake(
            request(with(<<"Sec-WebSocket-Protocol">>, Offered)), Settings
        ),
        case re:run(Response, <<"Sec-WebSocket-Protocol: (.*)\r\n">>, [{capture, [1], binary}]) of
            {match, [Name]} -> Name;
            nomatch -> none
        end
    end,
    More = #{subprotocols => [<<"nats/1.0">>]},
    [
        ?_assertEqual(<<"nats">>, Answer(<<"nats">>, #{})),
        ?_assertEqual(<<"nats">>, Answer(<<"mqtt, nats">>, #{})),
        ?_assertEqual(<<"NATS">>, Answer(<<"NATS">>, #{})),
        ?_assertEqual(none, Answer(<<"mqtt">>, #{})),
        ?_assertEqual(none, Answer(<<"nats/1.0">>, #{})),
        ?_assertEqual(<<"NATS/1.0">>, Answer(<<"NATS/1.0, nats">>, More)),
        ?_assertEqual(none, Answer(<<>>, More))
    ].

a_subprotocol_may_be_needed_test_() ->
    Needed = #{subprotocols => [<<"nats/1.0">>], needs_subprotocol => true},
    Offering = fun(Names) -> request(with(<<"Sec-WebSocket-Protocol">>, Names)) end,
    [
        ?_assertEqual(Expected, status(Request, Needed))
     || {Expected, Request} <- [
            {101, Offering(<<"nats/1.0">>)},
            {101, Offering(<<"mqtt, NATS">>)},
            {400, Offering(<<"mqtt">>)},
            {400, request(headers())}
        ]
    ].

origin_test() ->
    ?assertEqual({ok, {<<"https">>, <<"a.example">>, 443}}, ?WS:origin(<<"https://A.example">>)),
    ?assertEqual({ok, {<<"http">>, <<"a.example">>, 80}}, ?WS:origin(<<"http://a.example">>)),
    ?assertEqual({ok, {<<"http">>, <<"a">>, 8080}}, ?WS:origin(<<"HTTP://a:8080">>)),
    [
        ?assertEqual(error, ?WS:origin(Text))
     || Text <- [<<"null">>, <<>>, <<"a.example">>, <<"http://">>, <<"%">>]
    ].

check_origin_test_() ->
    {ok, Other} = ?WS:origin(<<"https://other.example">>),
    Same = #{same_origin => true},
    List = #{allowed_origins => [Other]},
    Status = fun(Origin, Settings, Secure) ->
        Headers = [{<<"Origin">>, Text} || Text <- [Origin], Text =/= none],
        status(request(headers() ++ Headers), Settings, Secure)
    end,
    [
        ?_assertEqual({Expected, Origin, Settings}, {
            Status(Origin, Settings, Secure), Origin, Settings
        })
     || {Expected, Origin, Settings, Secure} <- [
            {101, <<"http://evil.example">>, #{}, false},
            {101, <<"null">>, #{}, false},
            {101, none, Same, false},
            {101, none, List, false},
            {403, none, List#{allow_origin_absence => false}, false},
            {101, <<"https://other.example">>, List#{allow_origin_absence => false}, false},
            {101, <<"http://A.example:8080">>, Same, false},
            {403, <<"http://a.example">>, Same, false},
            {403, <<"http://b.example:8080">>, Same, false},
            {403, <<"null">>, Same, false},
            {101, <<"https://other.example">>, List, false},
            {101, <<"https://OTHER.example:443">>, List, false},
            {403, <<"http://other.example">>, List, false},
            {403, <<"https://other.example:444">>, List, false},
            {403, <<"https://another.example">>, List, false},
            {403, <<"http://a.example:8080">>, maps:merge(Same, List), false}
        ]
    ].

default_port_of_the_host_test() ->
    Headers = fun(Origin) ->
        lists:keystore(<<"Host">>, 1, headers(), {<<"Host">>, <<"a">>}) ++ [{<<"Origin">>, Origin}]
    end,
    Same = #{same_origin => true},
    ?assertEqual(101, status(request(Headers(<<"https://a">>)), Same, true)),
    ?assertEqual(403, status(request(Headers(<<"http://a">>)), Same, true)),
    ?assertEqual(101, status(request(Headers(<<"http://a">>)), Same, false)).

agreed(Headers, Settings) ->
    {upgrade, _, Agreed} = shake(request(headers() ++ Headers), Settings),
    Agreed.

cookie_test_() ->
    Jwt = fun(Value) -> agreed([{<<"Cookie">>, Value}], #{jwt_cookie => <<"jwt">>}) end,
    [
        ?_assertEqual(#{cookies => #{jwt => <<"x.y=z">>}}, Jwt(<<"a=b; jwt=x.y=z; c=d">>)),
        ?_assertEqual(#{cookies => #{jwt => <<"x">>}}, Jwt(<<"jwt=\"x\"; jwt=y">>)),
        ?_assertEqual(#{cookies => #{jwt => <<>>}}, Jwt(<<"jwt=">>)),
        ?_assertEqual(#{}, Jwt(<<"JWT=x; xjwt=y; jwt">>)),
        ?_assertEqual(#{}, agreed([{<<"Cookie">>, <<"jwt=x">>}], #{}))
    ].

proxy_address_test_() ->
    Address = fun(Headers) ->
        agreed(Headers, #{
            proxy_address_header => <<"x-forwarded-for">>,
            proxy_port_header => <<"x-forwarded-port">>
        })
    end,
    For = fun(Value) -> {<<"X-Forwarded-For">>, Value} end,
    Port = fun(Value) -> {<<"X-Forwarded-Port">>, Value} end,
    [
        ?_assertEqual(#{address => {10, 0, 0, 9}}, Address([For(<<"10.0.0.9">>)])),
        ?_assertEqual(#{address => {10, 0, 0, 9}}, Address([For(<<"10.0.0.9, 10.0.0.1">>)])),
        ?_assertEqual(#{address => {0, 0, 0, 0, 0, 0, 0, 1}}, Address([For(<<"::1">>)])),
        ?_assertEqual(
            #{address => {10, 0, 0, 9}, port => 77}, Address([For(<<"10.0.0.9">>), Port(<<"77">>)])
        ),
        ?_assertEqual(
            #{address => {10, 0, 0, 9}}, Address([For(<<"10.0.0.9">>), Port(<<"65536">>)])
        ),
        ?_assertEqual(#{address => {10, 0, 0, 9}}, Address([For(<<"10.0.0.9">>), Port(<<"7x">>)])),
        ?_assertEqual(#{}, Address([For(<<"unknown">>), Port(<<"77">>)])),
        ?_assertEqual(#{}, Address([])),
        ?_assertEqual(#{}, agreed([For(<<"10.0.0.9">>)], #{}))
    ].

deflate_offer_test_() ->
    Offer = fun(Value, Settings) ->
        {upgrade, Response, Agreed} = shake(
            request(with(<<"Sec-WebSocket-Extensions">>, Value)), Settings
        ),
        case re:run(Response, <<"Sec-WebSocket-Extensions: (.*)\r\n">>, [{capture, [1], binary}]) of
            {match, [Answer]} -> {Answer, maps:get(window_bits, maps:get(deflate, Agreed))};
            nomatch -> {none, maps:size(Agreed)}
        end
    end,
    On = #{compress => true},
    Both = <<"permessage-deflate; server_no_context_takeover; client_no_context_takeover">>,
    [
        ?_assertEqual({none, 0}, Offer(Both, #{})),
        ?_assertEqual({none, 0}, Offer(<<"x-webkit-deflate-frame">>, On)),
        ?_assertEqual({Both, 15}, Offer(Both, On)),
        ?_assertEqual({Both, 15}, Offer(<<"permessage-deflate; client_max_window_bits">>, On)),
        ?_assertEqual({Both, 15}, Offer(<<"x, Permessage-Deflate;client_max_window_bits=10">>, On)),
        ?_assertEqual(
            {<<Both/binary, "; server_max_window_bits=10">>, 10},
            Offer(<<"permessage-deflate; server_max_window_bits=10">>, On)
        ),
        ?_assertEqual({none, 0}, Offer(<<"permessage-deflate; server_max_window_bits=8">>, On)),
        ?_assertEqual({none, 0}, Offer(<<"permessage-deflate; server_max_window_bits=16">>, On)),
        ?_assertEqual({none, 0}, Offer(<<"permessage-deflate; unknown">>, On)),
        ?_assertEqual(
            {Both, 15},
            Offer(<<"permessage-deflate; server_max_window_bits=8, permessage-deflate">>, On)
        )
    ].

%% -------------------------------------------------------------------------------------------
%% Frames

open() -> open(none, infinity).

open(Deflate, MaxFrame) -> open(Deflate, MaxFrame, 1048576).

open(none, MaxFrame, MaxPayload) ->
    ?WS:open(#{}, #{max_frame_size => MaxFrame, max_payload_size => MaxPayload});
open(deflate, MaxFrame, MaxPayload) ->
    Deflate = #{window_bits => 15, level => best_speed, mem_level => 8, strategy => default},
    ?WS:open(#{deflate => Deflate}, #{max_frame_size => MaxFrame, max_payload_size => MaxPayload}).

-define(TEXT, 1).
-define(BINARY, 2).
-define(CLOSE, 8).
-define(PING, 9).

client(Opcode, Payload) -> client(Opcode, 1, 0, Payload).

client(Opcode, Fin, Rsv1, Payload) ->
    Key = rand:bytes(4),
    Size = byte_size(Payload),
    Length =
        if
            Size < 126 -> <<Size:7>>;
            Size < 65536 -> <<126:7, Size:16>>;
            true -> <<127:7, Size:64>>
        end,
    Mask = binary:part(binary:copy(Key, Size div 4 + 1), 0, Size),
    iolist_to_binary([
        <<Fin:1, Rsv1:1, 0:2, Opcode:4, 1:1, Length/bitstring>>, Key, crypto:exor(Payload, Mask)
    ]).

%% All there is after these pieces: the stream, what is sent at once, and how it ends.
feed(Pieces, Ws) -> feed(Pieces, [], [], Ws).

feed([], Stream, Out, Ws) ->
    {iolist_to_binary(Stream), iolist_to_binary(Out), open, Ws};
feed([Piece | Pieces], Stream, Out, Ws) ->
    {More, NWs} = ?WS:feed(Piece, Ws),
    %% Nothing to send is no empty send.
    ?assert(More =:= [] orelse iolist_size(More) > 0),
    case take(NWs, []) of
        {Data, {ended, Reason, Close}} ->
            {
                iolist_to_binary([Stream | Data]),
                iolist_to_binary([Out, More]),
                Reason,
                iolist_to_binary(Close)
            };
        {Data, TakenWs} ->
            feed(Pieces, [Stream | Data], [Out, More], TakenWs)
    end.

take(Ws, Data) ->
    case ?WS:take(Ws) of
        {data, More, NWs} ->
            ?assert(is_binary(More) andalso byte_size(More) > 0),
            take(NWs, [Data | More]);
        {empty, NWs} ->
            {Data, NWs};
        {ended, Reason, Close, _} ->
            {Data, {ended, Reason, Close}}
    end.

bytes(Binary) -> [<<Byte>> || <<Byte>> <= Binary].

stream_test() ->
    Frames = iolist_to_binary([
        client(?TEXT, 0, 0, <<"PI">>),
        client(?PING, <<"payload">>),
        client(0, 1, 0, <<"NG\r\n">>),
        client(10, <<"x">>),
        client(?BINARY, <<>>),
        client(?BINARY, binary:copy(<<"x">>, 70000))
    ]),
    Expected = <<"PING\r\n", (binary:copy(<<"x">>, 70000))/binary>>,
    ?assertMatch({Expected, <<16#8A, 7, "payload">>, open, _}, feed([Frames], open())),
    ?assertMatch({Expected, <<16#8A, 7, "payload">>, open, _}, feed(bytes(Frames), open())).

%% More than one call of the decoder looks at.
large_chunk_test() ->
    Payload = rand:bytes(1000000),
    Frame = client(?BINARY, Payload),
    ?assertMatch({Payload, <<>>, open, _}, feed([Frame], open())),
    Many = binary:copy(client(?BINARY, <<"PING\r\n">>), 50000),
    Pings = binary:copy(<<"PING\r\n">>, 50000),
    ?assertMatch({Pings, <<>>, open, _}, feed([Many], open())).

%% A call of the decoder ends by what it has done, not by bytes alone: 256 KiB of empty pings would
%% be four milliseconds of work.
calls_are_short_test_() ->
    Calls = fun(Frame) ->
        Size = byte_size(Frame),
        Chunk = binary:copy(Frame, 262144 div Size),
        Left = calls(Chunk, {0, 0, none, false}),
        %% whole frames, none of them lost
        ?assertEqual(0, lists:last(Left)),
        Before = [byte_size(Chunk) | lists:droplast(Left)],
        [(From - To) div Size || {From, To} <- lists:zip(Before, Left)]
    end,
    [
        ?_assert(lists:max(Calls(Frame)) < Most)
     || {Most, Frame} <- [
            {3000, client(?PING, <<>>)},
            {3000, client(?PING, <<"12345678">>)},
            {3000, client(?BINARY, 1, 1, <<>>)},
            {3000, client(?BINARY, 1, 1, <<0>>)},
            {12000, client(?BINARY, <<>>)}
        ]
    ].

%% What each call leaves.
calls(Bytes, Position) ->
    {_, _, {more, Rest, Need, NPosition}} =
        nats_gateway_nif:websocket_decode(Bytes, {1000, true}, Position),
    case Need of
        0 -> [byte_size(Rest) | calls(Rest, NPosition)];
        _ -> [byte_size(Rest)]
    end.

%% They come in order, however many calls there are.
many_small_frames_test() ->
    Numbers = [integer_to_binary(N) || N <- lists:seq(10000, 40000)],
    Chunk = iolist_to_binary([[client(?PING, N), client(?BINARY, N)] || N <- Numbers]),
    Pongs = iolist_to_binary([[<<16#8A, 5>>, N] || N <- Numbers]),
    Stream = iolist_to_binary(Numbers),
    ?assertMatch({Stream, Pongs, open, _}, feed([Chunk], open())),
    Fewer = lists:sublist(Numbers, 10000),
    Deflated = iolist_to_binary([client(?BINARY, 1, 1, message(N)) || N <- Fewer]),
    Inflated = iolist_to_binary(Fewer),
    ?assertMatch({Inflated, <<>>, open, _}, feed([Deflated], open(deflate, infinity))).

ends_test_() ->
    Ping = client(?BINARY, <<"PING\r\n">>),
    Close = fun(Payload) -> client(?CLOSE, Payload) end,
    [
        ?_assertEqual(
            {<<"PING\r\n">>, <<>>, Reason, Answer},
            feed([<<Ping/binary, Bytes/binary, "xx">>], open(none, 1000))
        )
     || {Bytes, Reason, Answer} <- [
            {Close(<<>>), client_closed, <<16#88, 0>>},
            {Close(<<1000:16>>), client_closed, <<16#88, 2, 1000:16>>},
            {Close(<<4999:16, "bye">>), client_closed, <<16#88, 5, 4999:16, "bye">>},
            {Close(<<1005:16>>), client_closed, <<16#88, 20, 1002:16, "invalid close code">>},
            {Close(<<999:16>>), client_closed, <<16#88, 20, 1002:16, "invalid close code">>},
            {Close(<<1>>), client_closed, <<16#88, 21, 1002:16, "invalid close frame">>},
            {
                Close(<<1000:16, 16#FF>>),
                client_closed,
                <<16#88, 34, 1007:16, "invalid utf8 body in close frame">>
            },
            {
                <<16#82, 1, "x">>,
                websocket_protocol_error,
                <<16#88, 18, 1002:16, "mask bit missing">>
            },
            {
                <<16#C2, 16#80>>,
                websocket_protocol_error,
                <<16#88, 18, 1002:16, "reserved bit set">>
            },
            {
                <<16#82, 16#FE, 1001:16>>,
                websocket_frame_too_large,
                <<16#88, 17, 1009:16, "frame too large">>
            }
        ]
    ].

nothing_after_the_end_test() ->
    {_, Ws} = ?WS:feed(client(?CLOSE, <<>>), open()),
    ?assertMatch({[], Ws}, ?WS:feed(client(?BINARY, <<"x">>), Ws)),
    ?assertMatch({ended, client_closed, _, _}, ?WS:take(Ws)).

%% After INFO.
introduced(Ws) ->
    {_, NWs} = ?WS:frame(<<"INFO">>, 4, true, Ws),
    NWs.

frame_test() ->
    Ws = introduced(open()),
    lists:foreach(
        fun({Size, Header}) ->
            Data = rand:bytes(Size),
            {Frame, Ws} = ?WS:frame([[], Data], Size, true, Ws),
            ?assertEqual(<<Header/binary, Data/binary>>, iolist_to_binary(Frame))
        end,
        [
            {1, <<16#82, 1>>},
            {125, <<16#82, 125>>},
            {126, <<16#82, 126, 126:16>>},
            {65535, <<16#82, 126, 65535:16>>},
            {65536, <<16#82, 127, 65536:64>>}
        ]
    ).

%% Where they are cut means nothing, and no frame is longer than nats.go takes it.
largest_frames_test_() ->
    [
        {timeout, 30, fun() ->
            Ws = introduced(Open),
            Data = [[Part(), $a], [Part() | Part()]],
            Size = iolist_size(Data),
            Frames = frames(iolist_to_binary(cut(Data, Size, MaxPayload, Ws))),
            Sizes = [byte_size(Payload) || {_, Payload} <- Frames],
            ?assertEqual(iolist_to_binary(Data), iolist_to_binary([plain(F) || F <- Frames])),
            ?assert(lists:max(Sizes) =< Max),
            %% no more of them than needed
            ?assertEqual((Size + Max - 1) div Max, length(Frames))
        end}
     || {MaxPayload, Max} <- [
            {1, 8}, {1000, 8000}, {131072, 1048576}, {131073, 1048576}, {8388608, 1048576}, {0, 1048576}
        ],
        Length <- [0, 1, 23999, 24000, 24001, 900000],
        Length < 100000 orelse MaxPayload > 1,
        Part <- [
            fun() -> rand:bytes(Length) end,
            fun() -> [rand:bytes(Length div 2), binary:copy(<<"x">>, Length - Length div 2)] end
        ],
        Open <- [open(), open(deflate, infinity)]
    ].

%% Clients take the first frame for INFO.
info_is_one_frame_test() ->
    Info = binary:copy(<<"x">>, 5000),
    ?assertEqual(infinity, ?WS:max_frame(1, open())),
    {Frame, Ws} = ?WS:frame(Info, 5000, true, open()),
    ?assertEqual(<<16#82, 126, 5000:16, Info/binary>>, iolist_to_binary(Frame)),
    ?assertEqual(625, length(frames(iolist_to_binary(cut(Info, 5000, 1, Ws))))).

%% As the connection does it.
cut(Data, Size, MaxPayload, Ws) ->
    case ?WS:max_frame(MaxPayload, Ws) of
        Max when Size =< Max ->
            {Frame, _} = ?WS:frame(Data, Size, true, Ws),
            Frame;
        Max ->
            {Front, Rest} = nats_gateway_transport:split(erlang:iolist_to_iovec(Data), Max),
            {Frame, NWs} = ?WS:frame(Front, Max, true, Ws),
            [Frame | cut(Rest, Size - Max, MaxPayload, NWs)]
    end.

frames(<<>>) ->
    [];
frames(<<First, 126, Size:16, Payload:Size/binary, Rest/binary>>) ->
    [{First, Payload} | frames(Rest)];
frames(<<First, 127, Size:64, Payload:Size/binary, Rest/binary>>) ->
    [{First, Payload} | frames(Rest)];
frames(<<First, Size, Payload:Size/binary, Rest/binary>>) ->
    [{First, Payload} | frames(Rest)].

plain({16#82, Payload}) ->
    Payload;
plain({16#C2, Payload}) ->
    Z = zlib:open(),
    ok = zlib:inflateInit(Z, -15),
    Inflated = zlib:inflate(Z, [Payload, <<0, 0, 16#FF, 16#FF>>]),
    zlib:close(Z),
    Inflated.

close_frame_test() ->
    ?assertEqual(
        <<16#88, 32, 1008:16, "Maximum Subscriptions Exceeded">>,
        iolist_to_binary(?WS:close_frame(1008, <<"Maximum Subscriptions Exceeded">>))
    ),
    ?assertEqual(<<16#88, 0>>, iolist_to_binary(?WS:close_frame(none, <<>>))).

%% -------------------------------------------------------------------------------------------
%% permessage-deflate

deflate(Data) -> deflate(Data, sync).

deflate(Data, Flush) ->
    Z = zlib:open(),
    ok = zlib:deflateInit(Z, default, deflated, -15, 8, default),
    Deflated = iolist_to_binary(zlib:deflate(Z, Data, Flush)),
    zlib:close(Z),
    Deflated.

%% As a message has it: without the tail that every flush ends with.
message(Data) ->
    Deflated = deflate(Data),
    Size = byte_size(Deflated) - 4,
    <<Message:Size/binary, 0, 0, 16#FF, 16#FF>> = Deflated,
    Message.

inflate_test() ->
    Large = binary:copy(<<"0123456789">>, 50000),
    <<Front:3/binary, Back/binary>> = message(<<"PONG\r\n">>),
    Frames = iolist_to_binary([
        client(?BINARY, 1, 1, message(<<"PING\r\n">>)),
        client(?BINARY, <<"plain ">>),
        client(?TEXT, 0, 1, Front),
        client(?PING, <<>>),
        client(0, 1, 0, Back),
        client(?BINARY, 1, 1, message(Large)),
        client(?BINARY, 1, 1, message(<<>>)),
        client(?BINARY, 1, 1, message(<<"end">>))
    ]),
    Expected = <<"PING\r\nplain PONG\r\n", Large/binary, "end">>,
    ?assertMatch({Expected, <<16#8A, 0>>, open, _}, feed([Frames], open(deflate, infinity))),
    ?assertMatch({Expected, <<16#8A, 0>>, open, _}, feed(bytes(Frames), open(deflate, infinity))).

%% RFC 7692 section 7.2.3.4: the message may end the deflate stream; one octet 0 follows then.
inflate_final_block_test() ->
    Message = <<(deflate(<<"Hello">>, finish))/binary, 0>>,
    Frames = [client(?BINARY, 1, 1, Message), client(?BINARY, 1, 1, message(<<"next">>))],
    ?assertMatch({<<"Hellonext">>, <<>>, open, _}, feed(Frames, open(deflate, infinity))).

%% It comes a little at a time, and ends at the limit, not when all of it is there.
zip_bomb_test() ->
    %% 1 MiB, the least that any setting of max_payload_size allows
    Limit = 1048576,
    Ws = open(deflate, infinity, 0),
    Message = fun(Size) -> client(?BINARY, 1, 1, message(binary:copy(<<0>>, Size))) end,
    {Fits, <<>>, open, NWs} = feed([Message(Limit)], Ws),
    ?assertEqual(Limit, byte_size(Fits)),
    %% It is one of each message.
    {Again, <<>>, open, _} = feed([Message(Limit)], NWs),
    ?assertEqual(Limit, byte_size(Again)),
    {Some, <<>>, websocket_message_too_large, Close} = feed([Message(Limit + 1)], Ws),
    ?assert(byte_size(Some) =< Limit),
    ?assertMatch(<<16#88, _, 1009:16, _/binary>>, Close),
    {_, Fed} = ?WS:feed(Message(20 * Limit), Ws),
    {data, First, _} = ?WS:take(Fed),
    ?assert(byte_size(First) =< 65536).

message_limit_test() ->
    Message = fun(Size) -> client(?BINARY, 1, 1, message(binary:copy(<<0>>, Size))) end,
    Payload = open(deflate, infinity, 200000),
    ?assertMatch({_, _, open, _}, feed([Message(1600000)], Payload)),
    ?assertMatch({_, _, websocket_message_too_large, _}, feed([Message(1600001)], Payload)),
    Frame = open(deflate, 5000),
    ?assertMatch({_, _, open, _}, feed([Message(5000)], Frame)),
    ?assertMatch({_, _, websocket_message_too_large, _}, feed([Message(5001)], Frame)).

bad_compression_test() ->
    lists:foreach(
        fun(Garbage) ->
            ?assertMatch(
                {_, <<>>, websocket_bad_compression, <<16#88, _, 1007:16, _/binary>>},
                feed([client(?BINARY, 1, 1, Garbage)], open(deflate, infinity))
            )
        end,
        [<<16#FF, 16#FF, 16#FF>>, <<6>>, <<1, 5, 0, 5, 0, "xxxxx">>]
    ).

deflated_frames_test() ->
    Ws = introduced(open(deflate, infinity)),
    Short = rand:bytes(64),
    {ShortFrame, Ws} = ?WS:frame(Short, 64, true, Ws),
    ?assertEqual(<<16#82, 64, Short/binary>>, iolist_to_binary(ShortFrame)),
    %% Each is inflated alone: nothing is taken over from the one before.
    lists:foldl(
        fun(Size, Before) ->
            Data = binary:copy(<<"MSG a 1 5\r\nhello\r\n">>, Size),
            {Uncompressed, Before} = ?WS:frame([Data], byte_size(Data), false, Before),
            ?assertMatch([{16#82, Data}], frames(iolist_to_binary(Uncompressed))),
            {Frame, After} = ?WS:frame([Data], byte_size(Data), true, Before),
            [{16#C2, Message} = Deflated] = frames(iolist_to_binary(Frame)),
            ?assertEqual(Data, iolist_to_binary(plain(Deflated))),
            ?assert(byte_size(Message) < byte_size(Data)),
            ?WS:at_rest(After)
        end,
        Ws,
        [4, 100, 10000]
    ).

%% The streams may be given back in the middle of a message.
at_rest_test() ->
    <<Front:3/binary, Back/binary>> = message(<<"PING\r\n">>),
    Ws = open(deflate, infinity),
    {FirstData, <<>>, open, Ws1} = feed([client(?BINARY, 0, 1, Front)], Ws),
    {SecondData, <<>>, open, Ws2} = feed([client(0, 1, 0, Back)], ?WS:at_rest(Ws1)),
    ?assertEqual(<<"PING\r\n">>, <<FirstData/binary, SecondData/binary>>),
    ?assertMatch(
        {<<"x">>, _, open, _}, feed([client(?BINARY, 1, 1, message(<<"x">>))], ?WS:at_rest(Ws2))
    ).

%% -------------------------------------------------------------------------------------------
%% Anything at all

everything() ->
    {ok, Origin} = ?WS:origin(<<"https://other.example">>),
    #{
        path => <<"/">>,
        same_origin => true,
        allowed_origins => [Origin],
        subprotocols => [<<"nats/1.0">>],
        compress => true,
        jwt_cookie => <<"jwt">>,
        proxy_address_header => <<"x-forwarded-for">>,
        proxy_port_header => <<"x-forwarded-port">>
    }.

full_request() ->
    request(
        headers() ++
            [
                {<<"Origin">>, <<"http://a.example:8080">>},
                {<<"Sec-WebSocket-Protocol">>, <<"mqtt, nats">>},
                {<<"Sec-WebSocket-Extensions">>,
                    <<"permessage-deflate; server_max_window_bits=10">>},
                {<<"Cookie">>, <<"a=b; jwt=\"c\"">>},
                {<<"X-Forwarded-For">>, <<"10.0.0.9">>},
                {<<"X-Forwarded-Port">>, <<"77">>}
            ]
    ).

%% Every byte of a request changed to some that mean something, or are not even text.
every_byte_of_a_request_changed_test_() ->
    Request = full_request(),
    {timeout, 60, fun() ->
        lists:foreach(
            fun(At) ->
                <<Front:At/binary, _, Back/binary>> = Request,
                [
                    shake(<<Front/binary, Byte, Back/binary>>, Settings)
                 || Byte <- [
                        0, 9, 10, 13, $\s, $", $,, $:, $;, $=, $[, $%, 16#7F, 16#80, 16#C3, 16#FF
                    ],
                    Settings <- [#{}, everything()]
                ]
            end,
            lists:seq(0, byte_size(Request) - 1)
        )
    end}.

a_header_that_is_no_text_test_() ->
    [
        ?_assertMatch(
            {_, {upgrade, _, _}}, {Name, shake(request(headers() ++ [{Name, Value}]), #{})}
        )
     || Name <- [<<"Cookie">>, <<"Origin">>, <<"Sec-WebSocket-Protocol">>, <<"X">>],
        Value <- [<<16#FF>>, <<"a", 16#C3>>, <<16#80, "=", 16#FF>>]
    ].

any_frames_test_() ->
    {timeout, 60, fun() ->
        [
            begin
                Bytes = rand:bytes(rand:uniform(300)),
                Likely = <<<<(Byte bor (16#80 * rand:uniform(2) - 16#80))>> || <<Byte>> <= Bytes>>,
                feed(bytes(Likely), open(deflate, 1000))
            end
         || _ <- lists:seq(1, 2000)
        ]
    end}.
