%% The server's side of WebSocket (RFC 6455, docs/protocol.md section 9): the HTTP request that
%% opens it, and then the frames in both directions. This module turns bytes into bytes. It has no
%% process, no socket and no clock.
%%
%% For NATS the messages are one stream of bytes, so what arrives is passed on and not collected.
-module(nats_gateway_websocket).

-export([new/2]).
-export([handshake/2]).
-export([open/2]).
-export([feed/2]).
-export([take/1]).
-export([frame/4]).
-export([max_frame/2]).
-export([close_frame/2]).
-export([has_streams/1]).
-export([at_rest/1]).
-export([origin/1]).
-export([is_open_to_any_page/1]).

-export_type([settings/0, handshake/0, agreed/0, websocket/0, origin/0, error_reason/0]).

%% The settings of a listener. A key that is absent switches its feature off: any path, any origin,
%% no compression, no cookie.
-type settings() :: #{
    %% the path, which includes all paths below it
    path => binary(),
    %% a browser's page must come from the host that it connects to, and from one of these origins
    same_origin => boolean(),
    allowed_origins => [origin()],
    %% whether a request without an Origin header is allowed; only browsers send one (true)
    allow_origin_absence => boolean(),
    %% subprotocols that are accepted besides `nats', in lower case
    subprotocols => [binary()],
    %% whether a request must offer one of them (false)
    needs_subprotocol => boolean(),
    compress => boolean(),
    deflate_options => #{
        level => zlib:zlevel(), mem_level => zlib:zmemlevel(), strategy => zlib:zstrategy()
    },
    %% in bytes; a compressed message counts after inflation
    max_frame_size := pos_integer() | infinity,
    %% time for the whole request in milliseconds
    handshake_timeout := pos_integer(),
    %% this cookie's value takes the place of `jwt' in CONNECT
    jwt_cookie => binary(),
    %% headers in which a trusted proxy names the client's address and port, in lower case
    proxy_address_header => binary(),
    proxy_port_header => binary()
}.

-type origin() :: {Scheme :: binary(), Host :: binary(), inet:port_number()}.

-record(handshake, {
    settings :: settings(),
    %% whether the connection uses TLS
    secure :: boolean(),
    line = request :: request | header,
    pending = <<>> :: binary(),
    size = 0 :: non_neg_integer(),
    method :: undefined | atom() | binary(),
    path = <<>> :: binary(),
    %% names in lower case, newest first
    headers = [] :: [{binary(), binary()}],
    count = 0 :: non_neg_integer()
}).

-opaque handshake() :: #handshake{}.

%% The result of the handshake.
-type agreed() :: #{
    %% these come from the proxy's headers
    address => inet:ip_address(),
    port => inet:port_number(),
    cookies => #{jwt => binary()},
    deflate => #{
        window_bits := 9..15,
        level := zlib:zlevel(),
        mem_level := zlib:zmemlevel(),
        strategy := zlib:zstrategy()
    }
}.

-record(websocket, {
    decode :: nats_gateway_nif:websocket_settings(),
    position = {0, 0, none, false} :: nats_gateway_nif:websocket_position(),
    rest = <<>> :: binary(),
    need = 0 :: non_neg_integer(),
    parts = [] :: [nats_gateway_nif:websocket_part() | {inflating, boolean()}],
    ended = false :: false | ended(),
    deflate = none :: none | map(),
    max_message :: pos_integer(),
    %% bytes of the current compressed message so far; `idle' if there is none
    inflated = idle :: idle | non_neg_integer(),
    inflater :: undefined | zlib:zstream(),
    deflater :: undefined | zlib:zstream(),
    %% whether INFO was sent
    introduced = false :: boolean()
}).

-opaque websocket() :: #websocket{}.

-type ended() ::
    {client_closed | error_reason(), Code :: none | 1000..4999, Text :: binary()}.

-type error_reason() ::
    websocket_protocol_error
    | websocket_frame_too_large
    | websocket_message_too_large
    | websocket_bad_compression.

%% The limit of the request line and the headers together. It leaves room for a JWT in a cookie and
%% a browser's own headers.
-define(MAX_REQUEST, 16384).
%% Browsers and proxies send some tens of headers. Each may need a hundred times its size in memory.
-define(MAX_HEADERS, 100).
-define(GUID, <<"258EAFA5-E914-47DA-95CA-C5AB0DC85B11">>).
%% Shorter messages are not compressed, as in nats-server.
-define(COMPRESS_ABOVE, 64).
%% The most bytes in a frame to the client. nats.go hangs up at a frame of more than 8 times INFO's
%% max_payload. The limits of other clients are MAX_FRAME or more.
-define(PAYLOADS_PER_FRAME, 8).
-define(MAX_FRAME, 1048576).
%% Any compressed message may have this size after inflation. The factor of max_payload_size is the
%% same as in nats-server.
-define(MIN_MAX_MESSAGE, 1048576).
-define(PAYLOADS_PER_MESSAGE, 8).
-define(NO_LIMIT, 16#FFFFFFFFFFFFFFFF).

%% -------------------------------------------------------------------------------------------
%% Handshake

%% `Secure' means that the request comes over TLS.
-spec new(settings(), Secure :: boolean()) -> handshake().
new(Settings, Secure) -> #handshake{settings = Settings, secure = Secure}.

%% Takes the next bytes of the request. After a refusal, the client gets the response and the
%% connection ends.
-spec handshake(binary(), handshake()) ->
    {more, handshake()}
    | {upgrade, Response :: iodata(), agreed()}
    | {refuse, Status :: 400..505, Why :: binary(), Response :: iodata()}.
handshake(Bytes, Handshake = #handshake{pending = Pending, size = Size}) ->
    NSize = Size + byte_size(Bytes),
    try
        NSize =< ?MAX_REQUEST orelse refuse(431, <<"request too long">>),
        request(Handshake#handshake{pending = <<Pending/binary, Bytes/binary>>, size = NSize})
    catch
        throw:{refuse, Status, Text} -> {refuse, Status, Text, response(Status)}
    end.

request(Handshake = #handshake{line = request, pending = Pending}) ->
    case erlang:decode_packet(http_bin, Pending, []) of
        {ok, {http_request, Method, Target, Version}, Rest} ->
            check_version(Version),
            request(Handshake#handshake{
                line = header, pending = Rest, method = Method, path = path(Target)
            });
        {more, _} ->
            %% Bytes that cannot become HTTP are refused before the end of their line.
            is_method(Pending) orelse refuse(400, <<"not an HTTP request">>),
            {more, Handshake};
        _ ->
            refuse(400, <<"not an HTTP request">>)
    end;
request(Handshake = #handshake{line = header, pending = Pending, headers = Headers}) ->
    #handshake{count = Count} = Handshake,
    case erlang:decode_packet(httph_bin, Pending, []) of
        {ok, {http_header, _, _, _, _}, _} when Count =:= ?MAX_HEADERS ->
            refuse(431, <<"too many headers">>);
        {ok, {http_header, _, _, Name, Value}, Rest} ->
            binary:match(Value, [<<"\r">>, <<"\n">>, <<0>>]) =:= nomatch orelse
                refuse(400, <<"invalid header">>),
            Header = {lower(Name), trim(Value)},
            request(Handshake#handshake{
                pending = Rest, headers = [Header | Headers], count = Count + 1
            });
        {ok, http_eoh, <<>>} ->
            upgrade(Handshake#handshake{headers = lists:reverse(Headers)});
        {ok, http_eoh, _} ->
            refuse(400, <<"client sent data before handshake is complete">>);
        {more, _} ->
            {more, Handshake};
        _ ->
            refuse(400, <<"invalid header">>)
    end.

check_version({1, Minor}) when Minor >= 1 -> ok;
check_version({Major, _}) when Major >= 2 -> refuse(505, <<"HTTP version">>);
check_version(_) -> refuse(400, <<"HTTP version">>).

is_method(<<>>) -> true;
is_method(<<C, _/binary>>) -> C >= $A andalso C =< $Z orelse C >= $a andalso C =< $z.

path({abs_path, Path}) -> path(Path);
path({absoluteURI, _, _, _, Path}) -> path(Path);
path(Path) when is_binary(Path) -> hd(binary:split(Path, <<"?">>));
path(_) -> refuse(400, <<"no path">>).

%% The checks and their order are the same as in nats-server.
upgrade(Handshake = #handshake{settings = Settings, headers = Headers, method = Method}) ->
    case Settings of
        #{path := Path} ->
            is_at(Path, Handshake#handshake.path) orelse refuse(404, <<"path">>);
        #{} ->
            ok
    end,
    Method =:= 'GET' orelse refuse(405, <<"request method must be GET">>),
    length(values(<<"host">>, Headers)) =:= 1 orelse refuse(400, <<"'Host' missing in request">>),
    has_token(<<"upgrade">>, <<"websocket">>, Headers) orelse
        refuse(400, <<"invalid value for header 'Upgrade'">>),
    has_token(<<"connection">>, <<"upgrade">>, Headers) orelse
        refuse(400, <<"invalid value for header 'Connection'">>),
    Key = first(<<"sec-websocket-key">>, Headers),
    Key =/= <<>> orelse refuse(400, <<"key missing">>),
    has_token(<<"sec-websocket-version">>, <<"13">>, Headers) orelse
        refuse(400, <<"invalid version">>),
    check_origin(Handshake),
    {Extensions, Deflate} = extensions(Settings, Headers),
    Response = [
        <<"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n">>,
        [<<"Sec-WebSocket-Accept: ">>, accept(Key), <<"\r\n">>],
        Extensions,
        subprotocol(Settings, Headers),
        <<"\r\n">>
    ],
    {upgrade, Response, maps:merge(client(Settings, Headers), Deflate)}.

%% As in EMQX, paths below the configured one are accepted, too.
is_at(Path, Requested) ->
    Below = <<(string:trim(Path, trailing, "/"))/binary, "/">>,
    Requested =:= Path orelse binary:longest_common_prefix([Requested, Below]) =:= byte_size(Below).

accept(Key) -> base64:encode(crypto:hash(sha, [Key, ?GUID])).

values(Name, Headers) -> [Value || {N, Value} <- Headers, N =:= Name].

first(Name, Headers) ->
    case lists:keyfind(Name, 1, Headers) of
        {_, Value} -> Value;
        false -> <<>>
    end.

has_token(Name, Token, Headers) ->
    lists:member(Token, [lower(Value) || Value <- list(Name, Headers)]).

%% All elements of a header that is a list. The header may have several lines.
list(Name, Headers) ->
    lists:flatmap(fun(Value) -> split(Value, <<",">>) end, values(Name, Headers)).

split(Text, Separator) -> [trim(Part) || Part <- binary:split(Text, Separator, [global])].

%% Headers are bytes, and need not be valid text in any encoding.
trim(Text) -> trim_end(trim_front(Text)).

trim_front(<<C, Rest/binary>>) when C =:= $\s; C =:= $\t -> trim_front(Rest);
trim_front(Text) -> Text.

trim_end(<<>>) ->
    <<>>;
trim_end(Text) ->
    case binary:last(Text) of
        C when C =:= $\s; C =:= $\t -> trim_end(binary:part(Text, 0, byte_size(Text) - 1));
        _ -> Text
    end.

lower(Text) -> <<<<(lower_letter(C))>> || <<C>> <= Text>>.

lower_letter(C) when C >= $A, C =< $Z -> C + 32;
lower_letter(C) -> C.

%% The answer has a subprotocol only if the client offered it: browsers fail on any other.
subprotocol(Settings, Headers) ->
    Known = [<<"nats">> | maps:get(subprotocols, Settings, [])],
    Offered = list(<<"sec-websocket-protocol">>, Headers),
    case [Name || Name <- Offered, lists:member(lower(Name), Known)] of
        [Name | _] -> [<<"Sec-WebSocket-Protocol: ">>, Name, <<"\r\n">>];
        [] ->
            maps:get(needs_subprotocol, Settings, false) andalso
                refuse(400, <<"no supported subprotocol is offered">>),
            []
    end.

-spec refuse(400..505, binary()) -> no_return().
refuse(Status, Text) -> throw({refuse, Status, Text}).

response(Status) ->
    Reason = reason(Status),
    Extra =
        case Status of
            400 -> <<"Sec-WebSocket-Version: 13\r\n">>;
            405 -> <<"Allow: GET\r\n">>;
            _ -> <<>>
        end,
    [
        [<<"HTTP/1.1 ">>, integer_to_binary(Status), $\s, Reason, <<"\r\n">>],
        [<<"Content-Type: text/plain; charset=utf-8\r\n">>, Extra],
        [<<"Connection: close\r\nContent-Length: ">>, integer_to_binary(byte_size(Reason) + 1)],
        [<<"\r\n\r\n">>, Reason, $\n]
    ].

reason(400) -> <<"Bad Request">>;
reason(403) -> <<"Forbidden">>;
reason(404) -> <<"Not Found">>;
reason(405) -> <<"Method Not Allowed">>;
reason(431) -> <<"Request Header Fields Too Large">>;
reason(505) -> <<"HTTP Version Not Supported">>.

%% -------------------------------------------------------------------------------------------
%% Origin

%% Parses `https://example.com'. Without a port, the default port of the scheme is used.
-spec origin(binary()) -> {ok, origin()} | error.
origin(Text) ->
    case uri(Text) of
        Uri = #{scheme := Scheme, host := Host} when Host =/= <<>> ->
            Lower = lower(Scheme),
            {ok, {Lower, lower(Host), port(Uri, Lower =:= <<"https">>)}};
        _ ->
            error
    end.

port(#{port := Port}, _) when is_integer(Port) -> Port;
port(_, true) -> 443;
port(_, false) -> 80.

%% OTP's parser accepts only text.
uri(Text) ->
    case is_printable(Text) of
        true -> uri_string:parse(Text);
        false -> error
    end.

is_printable(Text) -> lists:all(fun(C) -> C > $\s andalso C < 16#7F end, binary_to_list(Text)).

%% Whether a page of any origin can open a connection with its visitor's cookie.
-spec is_open_to_any_page(settings()) -> boolean().
is_open_to_any_page(Settings) ->
    is_map_key(jwt_cookie, Settings) andalso
        not maps:get(same_origin, Settings, false) andalso
        maps:get(allowed_origins, Settings, []) =:= [].

check_origin(#handshake{settings = Settings, secure = Secure, headers = Headers}) ->
    Same = maps:get(same_origin, Settings, false),
    Allowed = maps:get(allowed_origins, Settings, []),
    case first(<<"origin">>, Headers) of
        _ when not Same, Allowed =:= [] -> ok;
        <<>> ->
            maps:get(allow_origin_absence, Settings, true) orelse refuse(403, <<"no origin">>);
        Text ->
            case origin(Text) of
                {ok, Origin = {_, Host, Port}} ->
                    not Same orelse
                        {Host, Port} =:= requested(Secure, Headers) orelse
                        refuse(403, <<"not same origin">>),
                    Allowed =:= [] orelse
                        lists:member(Origin, Allowed) orelse
                        refuse(403, <<"origin not in the allowed list">>);
                error ->
                    refuse(403, <<"invalid origin">>)
            end
    end.

%% The origin that the client has connected to, by its Host header.
requested(Secure, Headers) ->
    case uri(<<"//", (first(<<"host">>, Headers))/binary>>) of
        Uri = #{host := Host} -> {lower(Host), port(Uri, Secure)};
        _ -> unknown
    end.

%% -------------------------------------------------------------------------------------------
%% Who the client is

client(Settings, Headers) ->
    maps:merge(address(Settings, Headers), cookies(Settings, Headers)).

%% The first of several addresses is the client's. An operator who configures the header trusts the
%% proxy to set it.
address(#{proxy_address_header := Name} = Settings, Headers) ->
    case list(Name, Headers) of
        [First | _] ->
            case inet:parse_strict_address(binary_to_list(First)) of
                {ok, Address} -> maps:merge(#{address => Address}, port_header(Settings, Headers));
                {error, _} -> #{}
            end;
        [] ->
            #{}
    end;
address(_, _) ->
    #{}.

port_header(#{proxy_port_header := Name}, Headers) ->
    case list(Name, Headers) of
        [First | _] ->
            case number(First) of
                Port when is_integer(Port), Port =< 65535 -> #{port => Port};
                _ -> #{}
            end;
        [] ->
            #{}
    end;
port_header(_, _) ->
    #{}.

cookies(#{jwt_cookie := Name}, Headers) ->
    Pairs = [
        binary:split(Cookie, <<"=">>)
     || Value <- values(<<"cookie">>, Headers), Cookie <- split(Value, <<";">>)
    ],
    case [Value || [N, Value] <- Pairs, N =:= Name] of
        [Value | _] -> #{cookies => #{jwt => unquote(Value)}};
        [] -> #{}
    end;
cookies(_, _) ->
    #{}.

number(Text) ->
    case re:run(Text, <<"\\A[0-9]{1,5}\\z">>, [{capture, none}]) of
        match -> binary_to_integer(Text);
        nomatch -> error
    end.

unquote(<<$", Rest/binary>> = Value) when byte_size(Rest) > 0 ->
    case binary:last(Rest) of
        $" -> binary:part(Rest, 0, byte_size(Rest) - 1);
        _ -> Value
    end;
unquote(Value) ->
    Value.

%% -------------------------------------------------------------------------------------------
%% permessage-deflate (RFC 7692)

%% Both sides start again with each message. nats-server does so, and nats.go requires it.
extensions(#{compress := true} = Settings, Headers) ->
    Offers = [
        split(Offer, <<";">>)
     || Value <- values(<<"sec-websocket-extensions">>, Headers), Offer <- split(Value, <<",">>)
    ],
    case lists:filtermap(fun offer/1, Offers) of
        [{WindowBits, Answer} | _] ->
            Options = maps:merge(
                #{level => best_speed, mem_level => 8, strategy => default},
                maps:get(deflate_options, Settings, #{})
            ),
            {
                [
                    <<"Sec-WebSocket-Extensions: permessage-deflate">>,
                    <<"; server_no_context_takeover; client_no_context_takeover">>,
                    [Answer, <<"\r\n">>]
                ],
                #{deflate => Options#{window_bits => WindowBits}}
            };
        [] ->
            {[], #{}}
    end;
extensions(_, _) ->
    {[], #{}}.

%% An offer has to be declined if a parameter is unknown or cannot be met.
offer([Name | Parameters]) ->
    lower(Name) =:= <<"permessage-deflate">> andalso parameters(Parameters, {15, []}).

parameters([], Accepted) ->
    {true, Accepted};
parameters([Parameter | Parameters], Accepted) ->
    case split(lower(Parameter), <<"=">>) of
        [<<"server_no_context_takeover">>] ->
            parameters(Parameters, Accepted);
        [<<"client_no_context_takeover">>] ->
            parameters(Parameters, Accepted);
        [<<"client_max_window_bits">> | _] ->
            %% We inflate with the largest window, which fits all others.
            parameters(Parameters, Accepted);
        [<<"server_max_window_bits">>, Value] ->
            case number(unquote(Value)) of
                %% zlib has no raw window of 8 bits.
                Bits when is_integer(Bits), Bits >= 9, Bits =< 15 ->
                    Answer = [<<"; server_max_window_bits=">>, integer_to_binary(Bits)],
                    parameters(Parameters, {Bits, Answer});
                _ ->
                    false
            end;
        _ ->
            false
    end.

%% -------------------------------------------------------------------------------------------
%% Frames of the client

-spec open(agreed(), #{
    max_frame_size := pos_integer() | infinity, max_payload_size := non_neg_integer(), _ => _
}) -> websocket().
open(Agreed, #{max_frame_size := MaxFrame, max_payload_size := MaxPayload}) ->
    Deflate = maps:get(deflate, Agreed, none),
    #websocket{
        decode = {min(MaxFrame, ?NO_LIMIT), Deflate =/= none},
        deflate = Deflate,
        max_message = min(MaxFrame, max(?MIN_MAX_MESSAGE, ?PAYLOADS_PER_MESSAGE * MaxPayload))
    }.

%% Takes the next bytes of the socket. `Pongs' are the answers to the pings in them.
-spec feed(binary(), websocket()) -> {Pongs :: [iodata()], websocket()}.
feed(_, Ws = #websocket{ended = Ended}) when Ended =/= false ->
    {[], Ws};
feed(Bytes, Ws = #websocket{rest = <<>>}) ->
    decode(Bytes, [], [], Ws);
feed(Bytes, Ws = #websocket{rest = Rest, need = Need}) ->
    Joined = <<Rest/binary, Bytes/binary>>,
    case byte_size(Joined) < Need of
        true -> {[], Ws#websocket{rest = Joined}};
        false -> decode(Joined, [], [], Ws)
    end.

%% `Parts' and `Pings' are those of this chunk so far, newest first.
decode(Bytes, Parts, Pings, Ws = #websocket{decode = Settings, position = Position}) ->
    {MoreParts, MorePings, Next} = nats_gateway_nif:websocket_decode(Bytes, Settings, Position),
    NParts = [MoreParts | Parts],
    NPings = [MorePings | Pings],
    case Next of
        {more, Rest, 0, NPosition} ->
            decode(Rest, NParts, NPings, Ws#websocket{position = NPosition});
        {more, Rest, Need, NPosition} ->
            NWs = Ws#websocket{rest = Rest, need = Need, position = NPosition},
            decoded(NParts, NPings, NWs);
        {close, Payload} ->
            decoded(NParts, NPings, ended(closed_by_client(Payload), Ws));
        {error, 1009, Text} ->
            decoded(NParts, NPings, ended({websocket_frame_too_large, 1009, Text}, Ws));
        {error, Code, Text} ->
            decoded(NParts, NPings, ended({websocket_protocol_error, Code, Text}, Ws))
    end.

ended(Ended, Ws) -> Ws#websocket{rest = <<>>, ended = Ended}.

decoded(Parts, Pings, Ws = #websocket{parts = Before}) ->
    {
        [[header(pong, byte_size(Ping)), Ping] || Ping <- in_order(Pings)],
        Ws#websocket{parts = in_order(Parts ++ [Before])}
    }.

in_order(NewestFirst) -> lists:append(lists:reverse(NewestFirst)).

%% The close frame is sent back, if its code may be sent.
closed_by_client(<<>>) ->
    {client_closed, none, <<>>};
closed_by_client(<<Code:16, Text/binary>>) ->
    case is_valid_code(Code) of
        true ->
            case unicode:characters_to_binary(Text) of
                Text -> {client_closed, Code, Text};
                _ -> {client_closed, 1007, <<"invalid utf8 body in close frame">>}
            end;
        false ->
            {client_closed, 1002, <<"invalid close code">>}
    end;
closed_by_client(_) ->
    {client_closed, 1002, <<"invalid close frame">>}.

%% The codes of RFC 6455 section 7.4, and those registered since.
is_valid_code(Code) when Code >= 1000, Code =< 1003; Code >= 1007, Code =< 1014 -> true;
is_valid_code(Code) -> Code >= 3000 andalso Code =< 4999.

%% Takes the next part of the stream: what a NATS client would have sent over TCP. At the end of the
%% stream comes the reason, with the close frame for the client.
-spec take(websocket()) ->
    {data, binary(), websocket()}
    | {empty, websocket()}
    | {ended, client_closed | error_reason(), CloseFrame :: iodata(), websocket()}.
take(Ws = #websocket{parts = [], ended = false}) ->
    {empty, Ws};
take(Ws = #websocket{parts = [], ended = {Reason, Code, Text}}) ->
    {ended, Reason, close_frame(Code, Text), Ws};
take(Ws = #websocket{parts = [Data | Parts]}) when is_binary(Data) ->
    {data, Data, Ws#websocket{parts = Parts}};
take(Ws = #websocket{parts = [{deflated, Data, Ends} | Parts]}) ->
    NWs = #websocket{inflater = Z} = begin_inflate(Ws),
    inflate(fun() -> zlib:safeInflate(Z, tail(Data, Ends)) end, Ends, NWs#websocket{parts = Parts});
take(Ws = #websocket{parts = [{inflating, Ends} | Parts], inflater = Z}) ->
    inflate(fun() -> zlib:safeInflate(Z, []) end, Ends, Ws#websocket{parts = Parts}).

%% Every compressed message ends with these bytes, which the client leaves out.
tail(Data, true) -> [Data, <<0, 0, 16#FF, 16#FF>>];
tail(Data, false) -> Data.

begin_inflate(Ws = #websocket{inflated = idle, inflater = undefined}) ->
    Z = zlib:open(),
    %% A client may end the deflate stream with its message. Then a new stream begins.
    ok = zlib:inflateInit(Z, -15, reset),
    Ws#websocket{inflated = 0, inflater = Z};
begin_inflate(Ws = #websocket{inflated = idle, inflater = Z}) ->
    ok = zlib:inflateReset(Z),
    Ws#websocket{inflated = 0};
begin_inflate(Ws) ->
    Ws.

%% Inflates a little at a time, because a message may be a thousand times as large as its compressed
%% bytes.
inflate(Step, Ends, Ws = #websocket{parts = Parts, inflated = Inflated, max_message = Max}) ->
    try Step() of
        {Kind, Output} when Kind =:= continue; Kind =:= finished ->
            Data = iolist_to_binary(Output),
            Size = Inflated + byte_size(Data),
            NWs =
                case {Kind, Ends} of
                    {continue, _} ->
                        Ws#websocket{inflated = Size, parts = [{inflating, Ends} | Parts]};
                    {finished, true} ->
                        Ws#websocket{inflated = idle};
                    {finished, false} ->
                        Ws#websocket{inflated = Size}
                end,
            if
                Size > Max -> take(broken(websocket_message_too_large, 1009, Ws));
                Data =:= <<>> -> take(NWs);
                true -> {data, Data, NWs}
            end;
        {need_dictionary, _, _} ->
            take(broken(websocket_bad_compression, 1007, Ws))
    catch
        error:data_error -> take(broken(websocket_bad_compression, 1007, Ws))
    end.

broken(Reason, Code, Ws) ->
    Text = binary:replace(atom_to_binary(Reason), <<"_">>, <<" ">>, [global]),
    Ws#websocket{parts = [], ended = {Reason, Code, Text}}.

%% -------------------------------------------------------------------------------------------
%% Frames to the client

%% The most bytes that the next frame may have. `MaxPayload' is the one in INFO. The first frame
%% holds exactly INFO, because clients take all of that frame for INFO.
-spec max_frame(MaxPayload :: non_neg_integer(), websocket()) -> pos_integer() | infinity.
max_frame(_, #websocket{introduced = false}) -> infinity;
%% For nats.go, 0 means no limit.
max_frame(0, _) -> ?MAX_FRAME;
max_frame(MaxPayload, _) -> min(?MAX_FRAME, ?PAYLOADS_PER_FRAME * MaxPayload).

%% Puts these bytes (`Size' of them) into a binary frame that is a whole message.
-spec frame(iodata(), Size :: pos_integer(), Compress :: boolean(), websocket()) ->
    {iodata(), websocket()}.
frame(Data, Size, Compress, Ws = #websocket{deflate = Deflate}) when
    not Compress; Deflate =:= none; Size =< ?COMPRESS_ABOVE
->
    {[header(binary, Size) | Data], Ws#websocket{introduced = true}};
frame(Data, Size, _, Ws) ->
    NWs = #websocket{deflater = Z} = begin_deflate(Ws),
    Flushed = iolist_to_binary(zlib:deflate(Z, Data, sync)),
    case byte_size(Flushed) - 4 of
        Deflated when Deflated < Size ->
            {[header(deflated, Deflated) | binary:part(Flushed, 0, Deflated)], NWs};
        _ ->
            %% Compression makes random bytes longer.
            {[header(binary, Size) | Data], NWs}
    end.

header(Frame, Size) -> nats_gateway_nif:websocket_header(Frame, Size).

begin_deflate(Ws = #websocket{deflater = undefined, deflate = Deflate}) ->
    #{window_bits := Bits, level := Level, mem_level := MemLevel, strategy := Strategy} = Deflate,
    Z = zlib:open(),
    ok = zlib:deflateInit(Z, Level, deflated, -Bits, MemLevel, Strategy),
    Ws#websocket{deflater = Z};
begin_deflate(Ws = #websocket{deflater = Z}) ->
    ok = zlib:deflateReset(Z),
    Ws.

%% Whether `at_rest/1' has something to give back.
-spec has_streams(websocket()) -> boolean().
has_streams(#websocket{inflater = undefined, deflater = undefined}) -> false;
has_streams(#websocket{}) -> true.

%% Gives back memory that is needed only while there is traffic.
-spec at_rest(websocket()) -> websocket().
at_rest(Ws = #websocket{inflated = Inflated, inflater = Inflater, deflater = Deflater}) ->
    close_stream(Deflater),
    case Inflated of
        idle ->
            close_stream(Inflater),
            Ws#websocket{inflater = undefined, deflater = undefined};
        _ ->
            Ws#websocket{deflater = undefined}
    end.

close_stream(undefined) -> ok;
close_stream(Z) -> zlib:close(Z).

%% The last frame. The client has got the reason in a NATS message before.
-spec close_frame(Code :: none | 1000..4999, Text :: binary()) -> iodata().
close_frame(none, _) ->
    header(close, 0);
close_frame(Code, Text) ->
    [header(close, 2 + byte_size(Text)), <<Code:16>>, Text].
