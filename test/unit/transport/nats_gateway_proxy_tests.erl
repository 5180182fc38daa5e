-module(nats_gateway_proxy_tests).

-include_lib("eunit/include/eunit.hrl").

-import(nats_gateway_proxy, [parse/1]).

-define(SIGNATURE, "\r\n\r\n\0\r\nQUIT\n").

v2(Command, Family, Body) ->
    <<?SIGNATURE, Command, Family, (byte_size(Body)):16, Body/binary>>.

%% Its addresses and ports, and what is behind them.
v2(Fields) -> v2(16#21, 16#11, <<192, 0, 2, 7, 127, 0, 0, 1, 5555:16, 4222:16, Fields/binary>>).

field(Type, Value) -> <<Type, (byte_size(Value)):16, Value/binary>>.

ssl(Fields) -> ssl(16#03, 0, Fields).

%% The bits of the client, and 0 where the proxy has verified its certificate.
ssl(Client, Verify, Fields) -> field(16#20, <<Client, Verify:32, Fields/binary>>).

client() -> client(nossl).

client(Peercert) ->
    #{
        peername => {{192, 0, 2, 7}, 5555},
        sockname => {{127, 0, 0, 1}, 4222},
        peercert => Peercert
    }.

client6() ->
    #{
        peername => {{16#2001, 16#db8, 0, 0, 0, 0, 0, 7}, 5555},
        sockname => {{0, 0, 0, 0, 0, 0, 0, 1}, 4222},
        peercert => nossl
    }.

headers() ->
    [
        {client(), <<"PROXY TCP4 192.0.2.7 127.0.0.1 5555 4222\r\n">>},
        {client6(), <<"PROXY TCP6 2001:db8::7 ::1 5555 4222\r\n">>},
        {nobody, <<"PROXY UNKNOWN\r\n">>},
        {nobody, <<"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n">>},
        {client(), v2(<<>>)},
        {client6(), v2(16#21, 16#21, <<16#20010db8:32, 0:80, 7:16, 1:128, 5555:16, 4222:16>>)},
        {nobody, v2(16#20, 0, <<>>)},
        {nobody, v2(16#20, 16#11, <<"anything">>)},
        {nobody, v2(16#21, 0, <<>>)},
        {nobody, v2(16#21, 16#31, <<0:(216 * 8)>>)},
        %% ALPN, the name asked for, a checksum, nothing, an id, one of its own
        {client(),
            v2(<<
                <<(field(Type, <<"1234">>))/binary>>
             || Type <- [1, 2, 3, 4, 5, 16#EA]
            >>)},
        {client([{pp2_ssl_cn, <<"alice">>}]),
            v2(
                <<(field(1, <<"h2">>))/binary,
                    (ssl(<<(field(16#21, <<"TLSv1.3">>))/binary, (field(16#22, <<"alice">>))/binary>>))/binary>>
            )},
        {client(), v2(ssl(field(16#21, <<"TLSv1.3">>)))},
        {client(), v2(field(4, <<0:(60000 * 8)>>))}
    ].

%% With HAProxy's `crt-ignore-err' a client with any certificate comes through.
only_the_name_of_a_verified_certificate_counts_test_() ->
    Name = field(16#22, <<"admin">>),
    [
        ?_assertEqual({ok, Expected, <<>>}, nats_gateway_proxy:parse(v2(ssl(Client, Verify, Name))))
     || {Client, Verify, Expected} <- [
            {16#03, 0, client([{pp2_ssl_cn, <<"admin">>}])},
            {16#05, 0, client([{pp2_ssl_cn, <<"admin">>}])},
            {16#07, 0, client([{pp2_ssl_cn, <<"admin">>}])},
            {16#03, 1, client()},
            {16#07, 16#FFFFFFFF, client()},
            {16#01, 0, client()},
            {16#00, 0, client()},
            {16#F9, 0, client()}
        ]
    ].

headers_test() ->
    [
        begin
            ?assertEqual({ok, Client, <<>>}, parse(Header)),
            ?assertEqual({ok, Client, <<"PROXY \r\n">>}, parse(<<Header/binary, "PROXY \r\n">>))
        end
     || {Client, Header} <- headers()
    ].

in_pieces_test() ->
    [
        ?assertEqual({Header, At, more}, {Header, At, parse(binary:part(Header, 0, At))})
     || {_, Header} <- headers(), byte_size(Header) < 1000, At <- lists:seq(0, byte_size(Header) - 1)
    ].

what_is_none_test() ->
    [
        ?assertEqual({Bytes, {error, no_proxy_header}}, {Bytes, parse(Bytes)})
     || Bytes <- [
            <<"GET / HTTP/1.1\r\n\r\n">>,
            <<"CONNECT {}\r\n">>,
            <<22, 3, 1>>,
            <<"\r\n\r\n\r\n">>,
            <<"PROXY\r\n">>,
            <<"proxy TCP4 192.0.2.7 127.0.0.1 5555 4222\r\n">>,
            <<13, 10, 13, 10, 0, 13, 10, 81, 85, 73, 84, 0, 16#20>>
        ]
    ].

what_is_wrong_test() ->
    [
        ?assertEqual({Bytes, {error, bad_proxy_header}}, {Bytes, parse(Bytes)})
     || Bytes <- [
            <<"PROXY \r\n">>,
            <<"PROXY TCP4\r\n">>,
            <<"PROXY TCP4 x y z w\r\n">>,
            <<"PROXY TCP4 1.2.3.4 5.6.7.8 a b\r\n">>,
            <<"PROXY TCP4 1.2.3.4 5.6.7.8 1 -1\r\n">>,
            <<"PROXY TCP4 1.2.3.4 5.6.7.8 65536 1\r\n">>,
            <<"PROXY TCP4 1.2.3.4 5.6.7.8 1 2 3\r\n">>,
            <<"PROXY TCP4 1.2.3.4  5.6.7.8 1 2\r\n">>,
            <<"PROXY TCP4 ::1 ::2 1 2\r\n">>,
            <<"PROXY TCP6 1.2.3.4 5.6.7.8 1 2\r\n">>,
            <<"PROXY TCP4 \x{e4} \x{ff} 1 2\r\n">>,
            <<"PROXY ", (binary:copy(<<"x">>, 101))/binary>>,
            <<"PROXY UNKNOWN ", (binary:copy(<<"x">>, 92))/binary, "\r\n">>,
            <<?SIGNATURE, 16#11>>,
            v2(16#22, 16#11, <<>>),
            v2(16#21, 16#11, <<1, 2, 3, 4>>),
            v2(16#21, 16#12, <<0:96>>),
            v2(16#21, 16#21, <<0:96>>),
            v2(16#21, 16#99, <<0:96>>),
            v2(<<1>>),
            v2(<<1, 5:16, "1234">>),
            v2(field(16#20, <<"123">>)),
            v2(ssl(<<16#22, 9:16, "alice">>)),
            v2(<<(ssl(field(16#22, <<"alice">>)))/binary, 0>>)
        ]
    ].

the_longest_line_test() ->
    Line = <<"PROXY UNKNOWN ", (binary:copy(<<"x">>, 91))/binary, "\r\n">>,
    ?assertEqual(107, byte_size(Line)),
    ?assertEqual({ok, nobody, <<>>}, parse(Line)).

%% Whatever comes, there is an answer, and of addresses only such as they are.
noise_test_() ->
    {timeout, 60, fun() ->
        Headers = [Header || {_, Header} <- headers(), byte_size(Header) < 1000],
        _ = rand:seed(exsss, 1),
        [look(spoil(lists:nth(rand:uniform(length(Headers)), Headers))) || _ <- lists:seq(1, 50000)]
    end}.

look(Bytes) ->
    case parse(Bytes) of
        more ->
            ok;
        {error, Reason} when Reason =:= no_proxy_header; Reason =:= bad_proxy_header ->
            ok;
        {ok, nobody, Rest} ->
            ?assert(byte_size(Rest) < byte_size(Bytes));
        {ok, #{peername := {From, FromPort}, sockname := {To, ToPort}, peercert := _}, Rest} ->
            ?assert(is_list(inet:ntoa(From)) andalso is_list(inet:ntoa(To))),
            ?assert(FromPort bor ToPort < 65536),
            ?assert(byte_size(Rest) < byte_size(Bytes))
    end.

spoil(Bytes) ->
    lists:foldl(fun(_, Acc) -> change(Acc) end, Bytes, lists:seq(1, rand:uniform(3))).

change(<<>>) ->
    <<>>;
change(Bytes) ->
    At = rand:uniform(byte_size(Bytes)) - 1,
    <<Before:At/binary, Byte, After/binary>> = Bytes,
    case rand:uniform(4) of
        1 -> <<Before/binary, (rand:uniform(256) - 1), After/binary>>;
        2 -> Before;
        3 -> <<Before/binary, After/binary>>;
        4 -> <<Before/binary, Byte, (rand:bytes(rand:uniform(4)))/binary, After/binary>>
    end.
