-module(nats_gateway_mqtt_input_tests).

-include_lib("eunit/include/eunit.hrl").

-define(INPUT, nats_gateway_mqtt_input).

%% What comes in these pieces, where a packet needs all of them.
all_pieces_make_the_whole_test() ->
    Whole = <<16#30, 5, 0, 1, "a", 0, "x">>,
    [
        begin
            <<First:Cut/binary, Second/binary>> = Whole,
            {bytes, First, Input} = ?INPUT:feed(First, ?INPUT:new(100)),
            Kept = ?INPUT:keep(First, byte_size(Whole), Input),
            ?assertMatch({bytes, Whole, _}, ?INPUT:feed(Second, Kept))
        end
     || Cut <- lists:seq(1, byte_size(Whole) - 1)
    ].

one_byte_less_than_needed_is_kept_test() ->
    Kept = ?INPUT:keep(<<"ab">>, 5, ?INPUT:new(100)),
    {more, Input} = ?INPUT:feed(<<"c">>, Kept),
    {more, Same} = ?INPUT:feed(<<>>, Input),
    {more, Four} = ?INPUT:feed(<<"d">>, Same),
    {bytes, <<"abcdef">>, Empty} = ?INPUT:feed(<<"ef">>, Four),
    ?assertMatch({bytes, <<"g">>, Empty}, ?INPUT:feed(<<"g">>, Empty)).

nothing_is_kept_of_nothing_test() ->
    Input = ?INPUT:new(100),
    ?assertEqual(Input, ?INPUT:keep(<<>>, 0, Input)).

what_is_skipped_ends_where_it_should_test() ->
    Bytes = <<"0123456789">>,
    [
        begin
            <<First:Cut/binary, Second/binary>> = Bytes,
            {more, Skipping} = ?INPUT:skip(Size, First, ?INPUT:new(100)),
            Left = Size - Cut,
            case ?INPUT:feed(Second, Skipping) of
                {bytes, Rest, _} -> ?assertEqual(binary:part(Second, Left, 10 - Size), Rest);
                {more, _} -> ?assertEqual(Left, byte_size(Second))
            end
        end
     || Size <- lists:seq(1, 10), Cut <- lists:seq(0, Size - 1)
    ].

what_is_there_as_a_whole_is_skipped_at_once_test() ->
    Input = ?INPUT:new(100),
    ?assertEqual({bytes, <<"89">>, Input}, ?INPUT:skip(8, <<"0123456789">>, Input)),
    ?assertEqual({bytes, <<>>, Input}, ?INPUT:skip(10, <<"0123456789">>, Input)).

%% Lengths of one to four bytes, at their limits.
behind_test_() ->
    [
        ?_assertEqual(<<"rest">>, ?INPUT:behind(2, <<16#D0, 0, (packet(Size))/binary, "rest">>))
     || Size <- [2, 127, 128, 16383, 16384, 2097151, 2097152]
    ].

packet(Size) -> <<16#30, (length_of(Size))/binary, 0:(Size * 8)>>.

length_of(Size) when Size < 128 -> <<Size>>;
length_of(Size) -> <<1:1, Size:7, (length_of(Size bsr 7))/binary>>.

large_test_() ->
    Body = <<0, 3, "a/b", 0, 9, 0, "x">>,
    Packet = fun(First) -> <<First, 16#80, 1, Body/binary>> end,
    [
        ?_assertEqual({publish, <<"a/b">>, 131, none}, ?INPUT:large(Packet(16#30))),
        ?_assertEqual({publish, <<"a/b">>, 131, 9}, ?INPUT:large(Packet(16#32))),
        ?_assertEqual({publish, <<"a/b">>, 131, 9}, ?INPUT:large(Packet(16#3B))),
        ?_assertEqual(other, ?INPUT:large(Packet(16#40)))
    ] ++
        [
            ?_assertEqual(more, ?INPUT:large(binary:part(Packet(16#32), 0, Size)))
         || Size <- lists:seq(3, 9)
        ].
